"""A Slurm of two nodes on this machine, for tests: real slurmctld, slurmd and munged.

Needs root and Debian's ``slurm-wlm`` (or another Slurm >= 22.05).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = ("n1", "n2")
DAEMONS = ("munged", "slurmctld", "slurmd")
REQUEUE_SECONDS = 5  # Slurm's pause before it starts a job again: the life of a credential

CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldParameters=enable_configless
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue}
CredType=cred/munge
SlurmUser=root
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdParameters=config_overrides
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=4000
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
"""


def available() -> bool:
    """Whether this machine can have the cluster."""
    known = all(map(_resolves, NODES))
    return os.getuid() == 0 and known and all(map(shutil.which, DAEMONS))


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Its commands (``sbatch``, ``scontrol`` ...) work inside the context."""
    port, n1, n2 = _free_ports(3)
    text = CONF.format(
        host=socket.gethostname(), folder=folder, requeue=REQUEUE_SECONDS, port=port, n1=n1, n2=n2
    )
    (folder / "slurm.conf").write_text(text)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        daemons.append(_munged(folder))
        daemons.append(subprocess.Popen(["slurmctld", "-D"]))
        for node in NODES:
            (folder / node).mkdir()
            daemons.append(subprocess.Popen(["slurmd", "-D", "-N", node]))
        wait_until(lambda: "idle" in slurm("sinfo", "--noheader", "--partition=low", "-o", "%t"))
        yield
        slurm("scancel", "--user=root", "--signal=KILL")
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
        del os.environ["SLURM_CONF"]


def slurm(*command: str) -> str:
    """What one of Slurm's commands prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Until it holds; AssertionError after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _munged(folder: Path) -> subprocess.Popen[bytes]:
    """Slurm's authentication; it insists on folders that only their owner can change."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    options = {"socket": "munge.socket", "key-file": key.name, "pid-file": "munge.pid"}
    options |= {"log-file": "munge.log", "seed-file": "munge.seed"}
    flags = [f"--{name}={folder / file}" for name, file in options.items()]
    process = subprocess.Popen(["munged", "--foreground", "--force", *flags])
    wait_until((folder / "munge.socket").exists)
    return process


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _resolves(name: str) -> bool:
    try:
        return bool(socket.gethostbyname(name))
    except OSError:
        return False
