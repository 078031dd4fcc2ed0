"""The README is tested as it is printed: its commands, its Python, its names."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from photographs import fill

from simclr_pl.__main__ import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)

# A full run takes minutes; the commands are the README's, and these only shorten them.
SHORT = [
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--wandb=off",
    "--linear.every_n_epochs=0",
]


def _commands() -> list[list[str]]:
    lines = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[3:] for line in words if line[:3] == ["python", "-m", "simclr_pl"]]


def _short_sweep(folder: Path) -> Path:
    """The shipped sweep: two runs of two epochs."""
    sweep = yaml.safe_load((REPOSITORY / "configs" / "sweep.yaml").read_text())
    short = {**sweep, "command": [*sweep["command"], *SHORT], "run_cap": 2}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(short, sort_keys=False))
    return path


@pytest.mark.long
@pytest.mark.processes
def test_commands_inside_sentences_and_tables_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    fill(tmp_path / "my" / "images", 4)
    commands = re.findall(r"`python -m simclr_pl ([^`]+)`", README)
    assert commands
    for command in commands:
        assert main(shlex.split(command)) == 0, (command, capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # of wandb-workspaces' own code
@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.processes
def test_commands_run_in_the_order_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    fill(tmp_path / "my" / "images", 16)
    commands = _commands()
    assert {args[0] for args in commands} == set(COMMANDS)
    for args in commands:
        if args[0] == "fit" and "my/packed" in args:
            args += ["--trainer.accelerator=cpu", "--data.batch_size=8", "--data.image_size=32"]
        elif {"configs/cifar.yaml", "configs/fashion_mnist.yaml"} & set(args):
            # Their data would be downloaded: what is tested is the recipe, on images that are here.
            args += ["--data.dataset=digits", "--trainer.accelerator=cpu", "--data.batch_size=64"]
        if "--trainer.devices" in args:  # ranks would run this process's command line
            args[args.index("--trainer.devices") + 1] = "1"
        if args[0] == "fit":  # a compiler's minute, which tests of their own spend
            args += ["--data.compiled=false", "--model.compiled=false"]
        if args[0] == "sweep":
            args += ["--config", str(_short_sweep(tmp_path))]
        resumed = ["--trainer.max_epochs=3"] if "--resume" in args else []
        extra = {
            "fit": [*SHORT, *resumed],
            "finetune": ["--epochs=2"],
            "bench": ["--seconds=1"],
        }.get(args[0], [])
        assert main([*args, *extra]) == 0, (args, capsys.readouterr().err)
    assert (tmp_path / "runs" / "sweep" / "runs.md").is_file()
    assert (tmp_path / "dashboard.json").is_file()
    written = {p.name for p in (tmp_path / "runs" / "mine").rglob("*")}
    assert {
        "config.yaml",
        "metrics.csv",
        "last.ckpt",
        "views.png",
        "curves.png",
        "map.png",
        "report.html",
        "comparison.html",
        "features-val.npz",
        "probe-val-seed0.json",
        "probe-test-seed0.json",
        "linear-test-seed0.json",
        "knn-test-seed2.json",
    } <= written


def test_every_override_of_the_change_one_thing_table_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row passes the parser and shows up in the configuration that it prints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    table = README.split("## Change one thing")[1].split("\n\n")[1]
    rows = [code for line in table.splitlines()[2:] for code in re.findall(r"`(--[^`]+)`", line)]
    assert len(rows) > 8
    config = REPOSITORY / "configs" / "digits.yaml"
    for row in rows:
        # --print_config stops behind the parser, which is what knows the keys and their types.
        with pytest.raises(SystemExit) as done:
            main(["fit", f"--config={config}", *shlex.split(row), "--print_config"])
        assert not done.value.code, row
        assert "model:" in capsys.readouterr().out


@pytest.mark.long
def test_python_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    assert len(code.strip().splitlines()) <= 10
    names: dict[str, object] = {}
    # A short epoch is the test's, everything else the README's.
    code = code.replace("max_epochs=2", "max_epochs=1, limit_train_batches=1")
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "digits.ckpt").is_file()


def test_links_point_at_files_that_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not (REPOSITORY / link).exists()]
    assert not missing
