"""The command line in a process that may take no more than BYTES above what libraries take."""

import os
import resource
import sys
from pathlib import Path

import simclr_pl.commands.fit  # noqa: F401  # what libraries take comes first
from simclr_pl.__main__ import main

if __name__ == "__main__":
    lines = Path("/proc/self/status").read_text().splitlines()
    taken = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize:"))
    most = taken + int(os.environ["BYTES"])
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    sys.exit(main())
