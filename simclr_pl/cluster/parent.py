"""The process that has started this one as a rank: gone, it takes this one with it."""

import os
import sys
import threading

STARTED_BY = "SIMCLR_PL_STARTED_BY"
"""Environment variable with the number of the process whose children are ranks."""

GRACE_S = 10.0
"""Seconds that this process has to end by itself when another rank has died."""

LOOK_S = 0.5
"""Seconds between two looks for that process."""


class Parent:
    """Watches over the process that Lightning's launcher was called in, from a rank's first moment.

    In a rank that waits for others to meet it, nothing else notices that they are gone.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        """Set when this rank is on its way out anyway."""
        self._watched = False

    def watch(self) -> None:
        """Begins to watch, in a rank that this package's command line has started; or is one."""
        number = os.environ.get(STARTED_BY, "")
        if is_started() and number.isdigit() and int(number) != os.getpid():
            self.look_for(int(number))
        else:
            os.environ[STARTED_BY] = str(os.getpid())

    def look_for(self, number: int) -> None:
        """Watches over a process by its number, if that isn't done already."""
        if not self._watched:
            self._watched = True
            threading.Thread(target=self._look, args=(number,), daemon=True).start()

    def _look(self, number: int) -> None:
        while os.getppid() == number:
            if self.over.wait(LOOK_S):
                return
        if not self.over.wait(GRACE_S):  # it waits for others, or hangs in a collective
            sys.stderr.write("error: rank 0, which has started this rank, is gone\n")
            sys.stderr.flush()
            os._exit(1)


PARENT = Parent()
"""The watch of this process."""


def is_started() -> bool:
    """Whether Lightning has started this process as a rank."""
    return "LOCAL_RANK" in os.environ and not {"RANK", "SLURM_PROCID"} & os.environ.keys()
