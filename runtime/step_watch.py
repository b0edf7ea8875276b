"""What all processes must know after each step, without making the host wait for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from runtime.distributed import world_size
from runtime.stopping import StopRequest


@dataclass
class _Pending:
    step: int
    flags: torch.Tensor  # on the host: not finite, signal
    copied: torch.cuda.Event | None  # None: the flags are there already


class StepWatch:
    """Looks for signals and for losses that are not finite; the same answer on all processes.

    One reduction of two numbers a step. On a GPU its result is read when the next step has been
    launched, so that the device never idles; on a CPU it is read at once.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._pending: _Pending | None = None

    def after(self, step: int, loss: torch.Tensor, wait: bool) -> int:
        """Report the ``loss`` (scalar) of ``step``; returns the signal received so far, or 0.

        With ``wait``, and where there is a signal, everything up to ``step`` has been looked at
        when this returns. Raises FloatingPointError, naming the step, where a loss is not finite.
        """
        signal = self._settle()
        flags = torch.empty(2, device=loss.device)
        flags[0] = loss.isfinite().logical_not()
        flags[1].fill_(self._stop.received)
        if world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        self._pending = _to_host(step, flags)
        if wait or signal or not loss.is_cuda:
            signal = self._settle() or signal
        return signal

    def _settle(self) -> int:
        pending, self._pending = self._pending, None
        if pending is None:
            return 0
        if pending.copied is not None:
            pending.copied.synchronize()
        diverged, signal = pending.flags.tolist()
        if diverged:
            raise FloatingPointError(f"the loss is not finite at step {pending.step}")
        return int(signal)


def _to_host(step: int, flags: torch.Tensor) -> _Pending:
    host = flags.to("cpu", non_blocking=True)
    if not flags.is_cuda:
        return _Pending(step, host, None)
    copied = torch.cuda.Event()
    copied.record()
    return _Pending(step, host, copied)
