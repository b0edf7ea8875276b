"""Reads hostile files under watch and prints what happened: python hostile_child.py KIND COUNT SEED

KIND is ``pickles`` or ``torch``; COUNT mutants follow the crafted files. Its working folder is the
current one. The process ends badly only if a file crashes it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

import conftest
import hostile_pickles
import hostile_torch
import numpy as np
import torch

from convert.foreign import Record
from convert.reading import read_checkpoint
from convert.to_detectron2 import convert_file
from runtime.errors import InputError

SLACK = 64 << 20
SECONDS = 20  # of CPU time for one small file, on a machine that is busy
EXTREMES = (0, 1, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)
FORBIDDEN = (
    *("exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "ctypes.dlopen", "os.remove"),
    *(
        "os.rename",
        "os.mkdir",
        "os.symlink",
        "os.link",
        "os.chmod",
        "shutil.rmtree",
        "code.__new__",
    ),
)
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, Record)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Watch:
    """What the interpreter does while a file is read."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._event)

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        imports = event == "import" and args[0] not in sys.modules
        if event in FORBIDDEN or writes or imports:
            self.seen.append(f"{event} {args!r:.200}")


def memory(what: str) -> int:
    """Bytes: VmRSS now, or VmHWM, the largest since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def read(path: Path, watch: Watch, problems: list[str], name: str) -> Any:
    """Content, or the InputError; everything else is a problem."""
    base = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.process_time()
    watch.on = True
    try:
        result = read_checkpoint(path)
    except InputError as error:
        result = error
    except BaseException as error:
        result = None
        problems.append(f"{name}: {type(error).__name__} {str(error)[:200]}")
    watch.on = False
    used, seconds = memory("VmHWM") - base, time.process_time() - started
    if used > 3 * path.stat().st_size + SLACK:
        problems.append(f"{name}: {used >> 20} MiB for a file of {path.stat().st_size} bytes")
    if seconds > SECONDS:
        problems.append(f"{name}: {seconds:.1f} s")
    if isinstance(result, InputError) and len(str(result)) > 700:
        problems.append(f"{name}: a message of {len(str(result))} characters")
    return result


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def touch(value: Any) -> None:
    """Use every number: memory that is not there would crash here."""
    if isinstance(value, dict):
        for item in value.values():
            touch(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            touch(item)
    elif isinstance(value, torch.Tensor):
        value.double().sum().item()
    elif isinstance(value, np.ndarray | np.generic):
        with np.errstate(all="ignore"):
            float(np.asarray(value).astype(np.float64).sum())
    elif value is not None and not isinstance(value, PLAIN) and not callable(value):
        raise TypeError(f"a {type(value).__name__} came out of a file")


def mutant(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four small changes of the kinds that find holes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out)) if out else 0
        size = min(rng.choice((1, 1, 2, 4, 8, 40)), len(out) - at)
        kind = rng.randrange(7)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size]
        elif kind == 4:
            fmt = rng.choice(("<I", "<Q"))
            value = rng.choice(EXTREMES) & ((1 << 8 * struct.calcsize(fmt)) - 1)
            out[at : at + struct.calcsize(fmt)] = struct.pack(fmt, value)
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            out[at : at + size] = other[start : start + size]
        else:
            del out[rng.randrange(len(out) // 2, len(out)) if len(out) > 1 else 0 :]
    return bytes(out)


def torch_mutant(
    rng: random.Random, name: str, data: bytes, all_: list[bytes]
) -> tuple[bytes, bool]:
    """A changed file; and whether its checksums were made to fit again, so that it may differ."""
    if rng.random() < 0.5:
        return mutant(rng, data, all_), name != "zip.pth"
    if name == "zip.pth":
        parts = hostile_torch.members(data)
        target = next(n for n in parts if n.endswith("data.pkl"))
        return hostile_torch.zipped(parts | {target: mutant(rng, parts[target], all_)}), True
    if name.endswith(".safetensors"):
        size = struct.unpack("<Q", data[:8])[0]
        header = mutant(rng, data[8 : 8 + size], [data[8 : 8 + size]])
        return struct.pack("<Q", len(header)) + header + data[8 + size :], True
    front = data[: data.index(b"storage") + 2000]  # the pickles of a legacy file
    return mutant(rng, front, all_) + data[len(front) :], True


def crafted(kind: str, watch: Watch, problems: list[str], counts: dict[str, int]) -> None:
    """Each file is refused, through the converter, too, and leaves nothing."""
    files = hostile_pickles.pickles() if kind == "pickles" else hostile_torch.torch_files()
    for name, data in files.items():
        path = Path(name.replace(" ", "_")) if kind == "torch" else Path("crafted.pkl")
        path.write_bytes(data)
        before = sorted(os.listdir())
        result = read(path, watch, problems, name)
        counts["crafted"] += 1
        if not isinstance(result, InputError) and not equal(
            result, hostile_pickles.HARMLESS.get(name)
        ):
            problems.append(f"{name}: gave {result!r:.100}")
        try:
            convert_file(path, "out.pkl")
            problems.append(f"{name}: was converted")
        except InputError:
            pass
        if sorted(os.listdir()) != before:
            problems.append(f"{name}: left {set(os.listdir()) - set(before)}")
        path.unlink()


def mutants(
    kind: str, count: int, seed: int, watch: Watch, problems: list[str], counts: dict[str, int]
) -> None:
    """Each mutant is refused or gives plain data; where checksums exist, the same data."""
    rng = random.Random(seed)
    honest = hostile_pickles.honest_pickles() if kind == "pickles" else hostile_torch.honest_torch()
    small = {name: data for name, data in honest.items() if len(data) < 100_000}
    originals = {}
    for name, data in small.items():
        path = Path("honest.pkl" if kind == "pickles" else name)
        path.write_bytes(data)
        originals[name] = read_checkpoint(path)
    for i in range(count):
        name = rng.choice(list(small))
        if kind == "pickles":
            path, may_differ = Path("mutant.pkl"), True
            data = mutant(rng, small[name], list(small.values()))
        else:
            path = Path(f"mutant.{name}")
            data, may_differ = torch_mutant(rng, name, small[name], list(small.values()))
        path.write_bytes(data)
        Path("current").write_text(f"{kind} seed {seed} mutant {i} of {name}")
        result = read(path, watch, problems, f"mutant {i} of {name}")
        if isinstance(result, InputError):
            counts["refused"] += 1
        elif equal(result, originals[name]):
            counts["equal"] += 1
        else:
            counts["other values"] += 1
            if not may_differ:
                problems.append(f"mutant {i} of {name}: other values in spite of its checksums")
        if not isinstance(result, InputError):
            touch(result)


def main(kind: str, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    problems: list[str] = []
    counts = dict.fromkeys(("crafted", "refused", "equal", "other values"), 0)
    pickles = {f"{name}.pkl": data for name, data in hostile_pickles.honest_pickles().items()}
    for name, data in (hostile_torch.honest_torch() | pickles).items():
        Path(name).write_bytes(data)
        read_checkpoint(name)  # so that all that is imported on demand is imported
    watch = Watch()
    size = memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), size + (1 << 30)))
    crafted(kind, watch, problems, counts)
    mutants(kind, count, seed, watch, problems, counts)
    print(json.dumps({"counts": counts, "events": watch.seen, "problems": problems}))


if __name__ == "__main__":
    assert conftest.ROOT  # puts the checkout on the path
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
