"""The pages: every file they name is there, and every file of the core is named."""

import re
from pathlib import Path

import pytest
from commands import REPOSITORY

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
CORE = REPOSITORY / "simclr_pl" / "core"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert all((page.parent / link).exists() for link in links if "://" not in link)
    for module in re.findall(r"`(simclr_pl(?:\.[a-z_]+)+)\b", text):
        parts = module.split(".")
        found = (REPOSITORY.joinpath(*parts[:end]) for end in range(len(parts), 1, -1))
        assert any(path.is_dir() or path.with_suffix(".py").is_file() for path in found), module


def test_the_walk_names_every_file_of_the_core() -> None:
    named = set(
        re.findall(r"`(?:[a-z_]+/)*([a-z_]+)\.py`", (REPOSITORY / "docs/core.md").read_text())
    )
    files = {path.stem for path in CORE.rglob("*.py")} - {"__init__"}
    assert files <= named
