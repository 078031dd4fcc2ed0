"""The Dockerfile, as far as it can be tried without Docker: its linter, its files, its install."""

import os
import re
import sys
import sysconfig
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from commands import REPOSITORY, called

DOCKERFILE = REPOSITORY / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each, without comments and continued lines."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def arguments(name: str) -> list[str]:
    return [rest for given, rest in instructions() if given == name]


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    command = [program, "--no-color", "--failure-threshold", "style", DOCKERFILE]
    # Without a configuration of whoever runs this: nothing is ignored but by name, with a reason.
    done = called(*command, env={"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert len(re.findall("hadolint ignore", DOCKERFILE.read_text())) == 1


def test_the_base_has_the_torch_that_was_tested() -> None:
    (base,) = arguments("ARG")
    tag = re.fullmatch(r"BASE=pytorch/pytorch:([\d.]+)-cuda[\d.]+-cudnn\d+-runtime", base)
    assert tag is not None
    assert f"torch=={tag[1]}" in (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert arguments("FROM") == ["${BASE}"]


def test_it_runs_the_package_as_a_user_without_rights() -> None:
    assert arguments("ENTRYPOINT") == ['["python", "-m", "simclr_pl"]']
    assert arguments("VOLUME") == ['["/simclr_pl/data", "/simclr_pl/runs"]']
    (user,) = arguments("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert arguments("WORKDIR") == ["/simclr_pl"]


# What is copied -----------------------------------------------------------------------------------


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a file through: the last line that fits it, or a folder of it."""
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    allowed = True
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            fits = any(fnmatchcase(part, pattern.removeprefix("**/")) for part in parts)
        else:
            assert "/" not in pattern  # which fnmatch would take for a letter
            fits = any(fnmatchcase(one, pattern) for one in above)
        allowed = line.startswith("!") if fits else allowed
    return allowed


def git(*args: str) -> list[str]:
    command = ["git", "-C", str(REPOSITORY), "ls-files", *args]
    done = called(*command)
    if done.returncode:
        pytest.skip("this is no git repository")
    return done.stdout.splitlines()


def copied() -> set[str]:
    return {word for rest in arguments("COPY") for word in rest.split()[:-1]}


def test_what_is_copied_exists_and_is_let_through() -> None:
    assert copied() >= {"pyproject.toml", "constraints.txt", "README.md", "simclr_pl", "configs"}
    for name in copied():
        assert (REPOSITORY / name).exists()
        assert in_context(name)
    tracked = git()
    assert {path for path in tracked if path.split("/")[0] in copied()} == {
        *filter(in_context, tracked)
    }


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", ".venv/bin/python", ".env", ".netrc", "wandb/settings", "data/images.npz"),
        *("runs/mine/config.yaml", "Dockerfile", "simclr_pl.egg-info/PKG-INFO", "key.pem"),
        *("simclr_pl/__pycache__/cli.cpython-311.pyc", "simclr_pl/run/__pycache__/job.pyc"),
    ],
)
def test_what_lies_about_is_not_sent_to_docker(path: str) -> None:
    assert not in_context(path)


def test_nothing_that_git_ignores_is_sent_to_docker() -> None:
    ignored = git("--others", "--ignored", "--exclude-standard")
    assert not [path for path in ignored if in_context(path)]


# The install --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["the tested", "another"])
def test_the_install_takes_the_torch_that_is_there(tmp_path: Path, version: str) -> None:
    """The line itself, on a Python that sees all packages, as the base's does, and no index."""
    (line,) = [rest for rest in arguments("RUN") if "venv" in rest]
    for name in copied():
        (tmp_path / name).symlink_to(REPOSITORY / name)
    if version == "another":
        constraints = (REPOSITORY / "constraints.txt").read_text()
        (tmp_path / "constraints.txt").unlink()
        changed = re.sub(r"^(torch|torchvision)==.*", r"\1==0.0.1", constraints, flags=re.MULTILINE)
        (tmp_path / "constraints.txt").write_text(changed)
    place = tmp_path / "environment"
    line = line.replace("/tmp/", f"{tmp_path}/here-").replace("/opt/simclr_pl", str(place))
    done = called(
        *("bash", "-o", "pipefail", "-c", line),
        cwd=tmp_path,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": sysconfig.get_paths()["purelib"],
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say that it is off
            "HOME": str(tmp_path / "home"),
        },
    )
    assert done.returncode == 0, done
    assert "Successfully installed simclr_pl" in done.stdout
    assert not list(place.glob("lib/python*/site-packages/torch*"))
    assert not list(tmp_path.glob("here-*"))
