"""Start the processes of a run: one, several on this machine, or those that a launcher started.

Options follow Detectron2's ``launch``: ``--num-gpus``, ``--num-machines``, ``--machine-rank``,
``--dist-url``. ``torchrun`` and Slurm (``srun``) are recognised by the variables that they set.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from runtime.errors import InputError, exit_code
from runtime.restarts import fresh_part, no_more, requeued, restarted, torchrun_store

# All wait while the main process scores a large test set (LVIS, ImageNet's neighbours): NCCL would
# end the run after ten minutes.
PATIENCE = timedelta(hours=1)
FIRST_PORT, PORTS = 20000, 12000  # below those that Linux gives away (32768 and up)


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Add Detectron2's launch options to a command line."""
    group = parser.add_argument_group("processes")
    group.add_argument("--num-gpus", type=int, default=None, help="GPUs a machine (default: all)")
    group.add_argument("--num-machines", type=int, default=1)
    group.add_argument("--machine-rank", type=int, default=0)
    group.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")


def launch(main: Callable[[Any], None], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process of the run, with the process group set up.

    NCCL where CUDA is available, else Gloo. A machine without a GPU runs one process, unless
    ``torchrun --nproc-per-node N`` or Slurm starts more.

    Raises :class:`InputError` for options that do not fit the machine.
    """
    if requeued():
        args.resume = True
    started = _started_by_launcher()
    if started is not None:
        store = torchrun_store()
        if store is None:
            _worker_main(main, args, *started, init_method="env://")
        else:
            _torchrun_main(main, args, started, store)
        return
    available = torch.cuda.device_count()
    num_gpus = available if args.num_gpus is None else args.num_gpus
    if num_gpus > available:
        raise InputError(
            f"--num-gpus {num_gpus}, but this machine has {available}: lower it, or for several "
            f"CPU processes use torchrun --nproc-per-node {num_gpus}"
        )
    per_machine = max(num_gpus, 1)
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}: it counts "
            f"from 0 to {args.num_machines - 1}"
        )
    world = per_machine * args.num_machines
    if world == 1:
        main(args)
        return
    url = _dist_url(args)
    mp.spawn(
        _spawned, args=(main, args, world, per_machine, args.machine_rank, url), nprocs=per_machine
    )


def exit_code_of_launch(main: Callable[[Any], None], args: argparse.Namespace) -> int:
    """``launch`` as a command line: 0, 2 for wrong input, 128 + the signal that stopped it."""
    try:
        return exit_code(lambda: launch(main, args))
    except mp.ProcessExitedException as error:  # the child has printed its one line
        if error.exit_code > 0:
            return error.exit_code
        raise


def _started_by_launcher() -> tuple[int, int, int] | None:
    """(rank, world size, local rank) that torchrun or srun put into the environment."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    if int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env:
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "127.0.0.1"
        env.setdefault("MASTER_ADDR", _first_host(nodes))
        port = FIRST_PORT + int(env["SLURM_JOB_ID"]) % PORTS
        env.setdefault("MASTER_PORT", str(port))
        env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_NTASKS"]
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["SLURM_LOCALID"])
    return None


def _first_host(nodes: str) -> str:
    """The first of a list as Slurm writes it, e.g. ``gpu007`` of ``gpu[007-009,012],cpu1``."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", re.split(r",(?![^[]*\])", nodes)[0])


def _torchrun_main(
    main: Callable[[Any], None], args: argparse.Namespace, place: tuple[int, int, int], store: Any
) -> None:
    """``main`` in a process of torchrun, continuing what torchrun has started before."""

    def start_or_continue(args: argparse.Namespace) -> None:
        if restarted(store):
            args.resume = True
        main(args)

    rank, world, _ = place
    try:
        _worker_main(start_or_continue, args, *place, store=fresh_part(store, rank, world))
    except (InputError, FloatingPointError) as error:
        no_more(store, error)
        raise


def _dist_url(args: argparse.Namespace) -> str:
    if args.dist_url != "auto":
        return args.dist_url
    if args.num_machines > 1:
        raise InputError("--num-machines > 1 needs --dist-url tcp://HOST_OF_MACHINE_0:PORT")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def _spawned(
    local_rank: int,
    main: Callable[[Any], None],
    args: argparse.Namespace,
    world: int,
    per_machine: int,
    machine_rank: int,
    url: str,
) -> None:
    rank = machine_rank * per_machine + local_rank
    code = exit_code(lambda: _worker_main(main, args, rank, world, local_rank, init_method=url))
    if code:
        sys.exit(code)


def _worker_main(
    main: Callable[[Any], None],
    args: argparse.Namespace,
    rank: int,
    world: int,
    local_rank: int,
    **meeting: Any,
) -> None:
    """``main`` in one process; ``meeting`` says where all of them meet."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=PATIENCE, **meeting)
    try:
        main(args)
    finally:
        dist.destroy_process_group()
