"""How much memory is free, and how to keep what has been freed for the next step."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator
from pathlib import Path

from runtime.device import CGROUPS

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = 2**31 - 1  # bytes

PROC = Path("/proc")
# limit, use, and which part of the use is files that the system can forget: cgroups v2 and v1
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks; whether it is there and obeys. A second call is harmless.

    By default each block of more than 32 MB, and many a smaller one, is mapped anew, and the
    system fills it with zeros page by page. A training step or an image needs the same sizes as
    the last one: keeping its blocks saves that, up to about 8 % of a step on a CPU. Peak memory
    grew by at most 7 % in fine-tuning; it is held until the process ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # macOS, Windows, musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST))


def free_memory(cgroups: Path = CGROUPS, proc: Path = PROC) -> float:
    """Bytes that processes can take here before the system has none left, or kills them for it.

    Of the machine without its swap, and of the containers or jobs that this process runs in.
    Infinite where nothing is known (not Linux).
    """
    with contextlib.suppress(OSError, ValueError):
        machine = _numbers(proc / "meminfo")["MemAvailable:"] * 1024
        return min([machine, *map(_left_in, _groups(cgroups, proc))])
    return math.inf


def _groups(cgroups: Path, proc: Path) -> Iterator[Path]:
    """This process's cgroups for memory, and those around them."""
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top = cgroups / "memory" if kinds else cgroups
        own = top / name.lstrip("/")
        yield from [own, *own.parents][: len(own.parts) - len(top.parts) + 1]


def _left_in(group: Path) -> float:
    for limit, use, forgettable in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # of the other version; "max"
            most, used = (int((group / name).read_text()) for name in (limit, use))
            return most - used + _numbers(group / "memory.stat").get(forgettable, 0)
    return math.inf


def _numbers(path: Path) -> dict[str, int]:
    """The first two words of each line."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
