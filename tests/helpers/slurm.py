"""A real Slurm of three nodes on this machine, for as long as a test needs it."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commands import REPOSITORY, called, environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=requeue_delay=0
SchedulerTimeSlice=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=4 Gres=gpu:2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=20 MaxTime=60 OverSubscribe=NO
PartitionName=high Nodes=n1,n2 PriorityTier=10 MaxTime=60 OverSubscribe=NO PreemptMode=OFF
PartitionName=gpu Nodes=n3 PriorityTier=1 MaxTime=60 OverSubscribe=NO
GresTypes=gpu
"""

NODES = ("n1", "n2", "n3")

GPUS = 2
"""Made up, of the last node."""


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    if os.geteuid() != 0:
        return "Slurm's programs have to be started by root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


class Slurm:
    """The cluster, as its users see it.

    Args:
        folder: for whatever it writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        more = {"SLURM_CONF": str(self.configuration), "PATH": _path(), "MASTER_ADDR": "127.0.0.1"}
        clean = {k: v for k, v in environment().items() if not k.startswith(("SLURM", "PYTEST"))}
        self.environment = {**clean, **more}

    def run(self, *command: object) -> str:
        """What a command of Slurm prints; it has to work."""
        done = called(*command, env=self.environment, cwd=REPOSITORY, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def submit(self, *words: object) -> str:
        """Submits a job, and returns its number."""
        return self.run("sbatch", "--parsable", *words).strip().split(";")[0]

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, done: Callable[[], bool], seconds: float) -> None:
        """Waits for something to become true."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.said() + self.logs()
            time.sleep(0.1)

    def said(self) -> str:
        """What Slurm knows of its jobs, and what each of them has printed."""
        jobs = self.run("scontrol", "show", "job")
        outputs = [Path(name) for name in re.findall(r"StdOut=(\S+)", jobs)]
        texts = [f"{path.name}\n{path.read_text()}" for path in outputs if path.exists()]
        return "\n".join([jobs, *texts])

    def logs(self) -> str:
        """The last lines of all of Slurm's logs."""
        texts = [
            path.name + "\n" + "\n".join(path.read_text().splitlines()[-30:])
            for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(texts)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Starts a controller, two nodes with a CPU each, one with four and two GPUs; ends them."""
    cluster = Slurm(folder)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(1 + len(NODES))]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    for number in range(GPUS):  # devices as good as any for Slurm, which only counts them
        os.mknod(folder / f"gpu{number}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"NodeName=n3 Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    folder.chmod(0o755)
    host = socket.gethostname()
    # Lightning's ranks meet at port 15000 + the last four digits of the job's number: clusters of
    # tests that run at once would have one port between them.
    known = {"host": host, "ports": ports, "folder": folder}
    first_job = 10000 + 10 * (os.getpid() % 999)
    cluster.configuration.write_text(CONFIGURATION.format(first_job=first_job, **known))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: object) -> None:
        with (folder / f"{len(daemons)}.out.log").open("wb") as out:
            words = [str(word) for word in command]
            daemons.append(subprocess.Popen(words, env=cluster.environment, stdout=out, stderr=out))

    try:
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid",
                 "log-file": "munge.log", "seed-file": "munge.seed"}  # fmt: skip
        start(
            "munged", "--foreground", "--force", *(f"--{k}={folder / v}" for k, v in files.items())
        )
        cluster.wait((folder / "munge.socket").exists, 20)
        start("slurmctld", "-D")
        for node in NODES:
            start("slurmd", "-D", "-N", node)
        cluster.wait(lambda: _idle(cluster) == len(NODES), 30)
        yield cluster
    finally:
        scancel = ("scancel", "--full", "--user=root", "--signal=KILL")
        called(*scancel, env=cluster.environment, timeout=30)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _idle(cluster: Slurm) -> int:
    ask = ("sinfo", "--noheader", "--Node", "--format=%N %t")
    done = called(*ask, env=cluster.environment, timeout=30)
    lines = set(done.stdout.splitlines()) if done.returncode == 0 else set()
    return sum(line.endswith(" idle") for line in lines)
