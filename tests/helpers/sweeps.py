"""The script that sweeps, with short runs."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from commands import QUICK, REPOSITORY, called, environment

SCRIPT = REPOSITORY / "scripts" / "sweep.sh"


def swept(*args: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with this interpreter as `python`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return called("bash", SCRIPT, *args, env=environment(PATH=path, **variables), timeout=200)


def write(path: Path, *options: str) -> Path:
    """The shipped sweep, its runs short, with further options."""
    content = yaml.safe_load((REPOSITORY / "configs" / "sweep.yaml").read_text())
    place = content["command"].index("fit") + 1
    content["command"] = [*content["command"][:place], *QUICK, *options, "${args}"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
