"""Runs that a launcher starts again: they continue, as with ``--resume``, without being asked.

``torchrun --max-restarts N`` starts all processes anew when one has died, or when machines join or
leave (``--nnodes 1:4``). Its restart counter does not count the latter, and may differ between
machines. So each start leaves a mark in torchrun's own key-value store, which lives as long as the
launch: a later start that finds one continues. Wrong input leaves a mark as well, and the restarts
stop at once: otherwise a refusal ("already holds a run") would be followed by continuing just that
run.

Slurm counts how often it has put a job into the queue again.
"""

from __future__ import annotations

import os
import time
import uuid

import torch.distributed as dist

from runtime.distributed import barrier, from_main, is_main
from runtime.errors import InputError

_STARTED, _REFUSED = "moco/started", "moco/refused"
_POLL = 0.05  # seconds


def requeued() -> bool:
    """Whether Slurm has started this job before: after a failed node, or a pre-emption."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def torchrun_store() -> dist.Store | None:
    """The key-value store of the ``torchrun`` that started this process; None without one."""
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)


def fresh_part(store: dist.Store, rank: int, world: int) -> dist.Store:
    """A part of ``store`` that the processes of this start share with no earlier one.

    torch (2.14) sets up process groups in the store itself, where a restarted process may find the
    address of a dead one, and hangs or fails. Each process asks rank 0 with a word of its own, so
    that an answer to an earlier start cannot be mistaken for one to this.
    """
    word = uuid.uuid4().hex
    if rank:
        store.set(f"moco/question/{rank}", word)
        store.wait([f"moco/answer/{word}"])
        name = store.get(f"moco/answer/{word}").decode()
        store.add(f"{name}/joined", 1)
        return dist.PrefixStore(name, store)
    name = f"moco/start/{word}"
    while store.add(f"{name}/joined", 0) < world - 1:
        for other in range(1, world):
            if store.check([f"moco/question/{other}"]):
                asked = store.get(f"moco/question/{other}").decode()
                store.set(f"moco/answer/{asked}", name)
        time.sleep(_POLL)
    return dist.PrefixStore(name, store)


def restarted(store: dist.Store) -> bool:
    """Whether torchrun has started these processes before; the same answer on all of them.

    Every process must ask, once, with the process group set up. Raises InputError where wrong input
    ended the last start.
    """
    if store.check([_REFUSED]):
        raise InputError(f"not tried again: {store.get(_REFUSED).decode()}")
    again = from_main(store.check([_STARTED]))
    barrier()
    if is_main():
        store.set(_STARTED, "yes")
    return again


def no_more(store: dist.Store, error: Exception) -> None:
    """Tell the restarts to come that ``error`` would only be repeated."""
    if not store.check([_REFUSED]):
        store.set(_REFUSED, str(error))
