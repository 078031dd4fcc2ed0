"""views: a picture of what a run or a configuration would train on."""

from pathlib import Path

import pytest
from commands import run
from figures import check_picture
from noise import write_images

pytestmark = pytest.mark.long


def test_views_draws_a_picture_into_the_run(finished: Path) -> None:
    assert run("views", "--run_dir", finished, "--images=3", "--epochs=1").code == 0
    check_picture((finished / "pictures" / "views.png").read_bytes())


def test_views_draws_what_a_configuration_would_do(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("seed_everything: 1\ndata: {dataset: digits, scale: [0.2, 0.9]}\n")
    target = tmp_path / "out.png"
    assert run("views", "--config", f"[{config}]", f"--out={target}", "--images=2").code == 0
    check_picture(target.read_bytes())


def test_views_draws_image_files_as_workers_cut_them(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 12, 40, 60)
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"data: {{dataset: folder, root: {folder}, image_size: 32, num_workers: 0}}\n"
    )
    target = tmp_path / "out.png"
    assert run("views", "--config", f"[{config}]", f"--out={target}", "--images=2").code == 0
    check_picture(target.read_bytes())
