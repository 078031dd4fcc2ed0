"""Where tests lie, and how long their files are."""

from commands import REPOSITORY

TESTS = REPOSITORY / "tests"
FILES = sorted(TESTS.rglob("*.py"))

MOST_LINES = 400

LONGER: dict[str, str] = {}
"""Files with more lines than that, each with the reason why it is not split by topic."""


def test_no_file_of_tests_is_long_unless_a_reason_stands_here() -> None:
    lines = {str(path.relative_to(TESTS)): len(path.read_text().splitlines()) for path in FILES}
    long = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert long.keys() == LONGER.keys(), long


def test_folders_of_tests_are_rooms_of_the_package() -> None:
    folders = {path.parent.relative_to(TESTS) for path in FILES if path.name.startswith("test_")}
    strangers = [str(one) for one in folders if not (REPOSITORY / "simclr_pl" / one).is_dir()]
    assert strangers == []
