"""Hand a command over to Slurm, which starts it again until it has finished (``submitit``)."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.errors import SIGNALLED, InputError

STOP = "USR1"  # a run saves a checkpoint when it receives it
SECONDS_TO_SAVE = 180  # between that signal and the end of a job's time
QUEUED_AGAIN = -1  # submitit's exit code, when the signal has hit a script that starts or ends
MAX_STARTS = 1000  # a run may need many jobs; each one goes on from a checkpoint
DEFAULTS = {"nodes": 1, "gpus": 1, "cpus": 8, "hours": 24.0}


class Job:
    """One task of a Slurm job: a Python script with its arguments, run in this process.

    ``arguments`` are those of the command line, the script first. When Slurm takes the machines
    back, the script stops with a checkpoint, and the job is queued again, now with ``--resume``.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)

    def __call__(self) -> None:
        """Run the script; RuntimeError, which marks the job as failed, for another exit code."""
        sys.argv = self.arguments
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code == QUEUED_AGAIN:
                raise
            self._ended(int(end.code or 0))

    def _ended(self, code: int) -> None:
        stop = getattr(signal, f"SIG{STOP}")
        if code == SIGNALLED + stop:
            # The run had taken over the signal that submitit waits for. The main task queues the
            # job again and leaves, the others come back from here.
            signal.raise_signal(stop)
        elif code == SIGNALLED + signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            # Slurm queues a pre-empted job again only if it is still there at the end of the grace
            # time. Who has cancelled it waits for a few seconds.
            signal.pause()
        elif code:
            raise RuntimeError(f"{self.arguments[0]} has ended with exit code {code}")

    def checkpoint(self) -> Any:
        """What submitit shall run next: the same, continued."""
        from submitit.helpers import DelayedSubmission

        resume = [] if "--resume" in self.arguments else ["--resume"]
        return DelayedSubmission(Job([*self.arguments, *resume]))


def submit(options: str, arguments: Sequence[str], folder: Path, cluster: str = "slurm") -> str:
    """Submit a script with its arguments and return the job's number.

    ``options`` is e.g. "nodes=8,gpus=8,hours=72,partition=long": machines, GPUs of each (one
    process a GPU; one process for gpus=0), CPU cores of each process, hours of a job, and whatever
    else ``sbatch`` knows. Logs go to ``folder``. InputError for options that cannot be, or that
    ``sbatch`` refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("--slurm needs submitit: pip install 'submitit>=1.5'") from error
    values = parse(options)
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = STOP  # for the job as well: it inherits all of these
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    submitit.JobEnvironment.USR_SIG = STOP
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=MAX_STARTS)
        executor.update_parameters(**_parameters(values))
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise InputError(f"--slurm {options}: {' '.join(str(error).split())}") from error
    try:
        return executor.submit(Job(arguments)).job_id
    except submitit.core.utils.FailedJobError as error:  # what sbatch says
        raise InputError(f"--slurm {options}: {error}") from error


def parse(options: str) -> dict[str, Any]:
    """The defaults and the pairs KEY=VALUE; numbers where the defaults are numbers."""
    values: dict[str, Any] = dict(DEFAULTS)
    for pair in filter(None, options.split(",")):
        key, equals, text = pair.partition("=")
        kind = type(DEFAULTS.get(key, ""))
        try:
            values[key] = kind(text)
        except ValueError:
            equals = ""
        if not equals or not text or (key in DEFAULTS and values[key] < 0):
            raise InputError(f"--slurm {pair!r} is not KEY=VALUE, like nodes=2,gpus=8,hours=24")
    return values


def without_option(arguments: Sequence[str], option: str) -> list[str]:
    """A command line without ``option VALUE`` or ``option=VALUE``."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(f"{option}="):
            kept.append(argument)
        skip = argument == option
    return kept


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    ours = {
        "name": "moco",
        "nodes": values["nodes"],
        "tasks_per_node": max(1, values["gpus"]),
        "gpus_per_node": values["gpus"],
        "cpus_per_task": values["cpus"],
        "timeout_min": round(values["hours"] * 60),
        "slurm_signal_delay_s": SECONDS_TO_SAVE,
    }
    return ours | {f"slurm_{key}": values[key] for key in values.keys() - DEFAULTS.keys()}
