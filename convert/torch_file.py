"""Is a torch file what it claims, before torch reads it, and are its tensors sound afterwards?

``weights_only=True`` runs no foreign code, but it checks no checksum, allocates what a file names
(a 384-byte file can ask for 1 GB), and hands out tensors that claim more elements than they have.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from convert.foreign import is_foreign
from convert.recorder import Bounded, Call, Recorder, RefusedError, Symbol, shown
from runtime.errors import InputError

MAX_STRUCTURE = 64 << 20  # bytes of a torch file's own pickle: names and shapes, no weights
MAX_OPCODES = 400_000
MAX_DEPTH = 32
MAX_NDIM = 8
MAX_SHARED = 8  # times the file's size that tensors on shared memory may add up to
ZIP_START = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of files before PyTorch 1.6
LEGACY_START = pickle.LONG1 + b"\n" + LEGACY_MAGIC.to_bytes(10, "little")  # after the protocol
ITEM_BYTES = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2},
    **{"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1},
    "BoolStorage": 1,
}
DTYPES = frozenset(
    (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
)
# Functions of torch and Python that a pickle may call; of other packages torch.load refuses all
# that is not made harmless.
CALLS = frozenset(
    (
        *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.Size"),
        *("torch.device", "builtins.set", "__builtin__.set", "builtins.getattr"),
    )
)


def check_torch_file(file: Path) -> None:
    """Checksums, sizes and structure of a ``.pth`` of either kind; InputError where it is unsound.

    Decides by the first bytes, as torch does, so that no file is checked as one and read as the
    other.
    """
    try:
        with open(file, "rb") as stream:
            if stream.read(4) == ZIP_START:
                _check_zip(file)
            else:
                stream.seek(0)
                _check_legacy(stream, file.stat().st_size)
    except RefusedError as error:
        raise InputError(f"{file} is not a safe torch file: it {error}") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{file} is a damaged torch file: {error}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{file} is not a readable torch checkpoint ({type(error).__name__}): truncated, or "
            "another kind of file"
        ) from error


def _check_zip(file: Path) -> None:
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise RefusedError("has two members of one name")
        if any(name.endswith("/constants.pkl") for name in members):
            raise RefusedError("is TorchScript: save torch.jit.load(...).state_dict() instead")
        if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members.values()):
            raise RefusedError("has compressed or encrypted members: not written by torch.save")
        if sum(member.file_size for member in members.values()) > size:
            raise RefusedError("claims to be larger than it is")
        structures = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(structures) != 1:
            raise RefusedError(f"has {len(structures)} members data.pkl: not written by torch.save")
        root = structures[0].removesuffix("data.pkl")
        if not all(name.startswith(root) for name in members):
            raise RefusedError("has members beside its folder: not written by torch.save")
        if members[structures[0]].file_size > MAX_STRUCTURE:
            raise RefusedError("has a data.pkl above 64 MiB")
        order = members.get(f"{root}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise RefusedError("was written on a big-endian machine: write it again on another one")
        if damaged := archive.testzip():
            raise RefusedError(f"is damaged: the checksum of {shown(damaged)} does not match")
        with archive.open(structures[0]) as stream:
            recorder = _Structure(Bounded(stream, members[structures[0]].file_size), size)
            recorder.load()
        for key, claimed in recorder.storages.items():
            member = members.get(f"{root}data/{key}")
            if member is None or claimed > member.file_size:
                raise RefusedError(f"has no {claimed} bytes for tensor data {shown(key)}")


def _check_legacy(stream: IO[bytes], size: int) -> None:
    """Five pickles (magic number, version, system, content, keys), then the tensors' data."""
    bounded = Bounded(stream, size)
    if _Structure(bounded, size).load() != LEGACY_MAGIC:
        raise RefusedError(
            "does not begin as torch.save writes: another kind of file (a pickle of NumPy arrays "
            "must be called .pkl)"
        )
    for _ in ("version", "system"):
        _Structure(bounded, size).load()
    content = _Structure(bounded, size)
    content.load()
    keys = _Structure(bounded, size).load()
    if not isinstance(keys, list) or set(map(str, keys)) != set(content.storages):
        raise RefusedError("has other tensor data than its tensors name")
    if sum(content.storages.values()) + 8 * len(keys) != bounded.left:
        raise RefusedError("has more or less tensor data than its tensors name: is it cut short?")


class _Structure(Recorder):
    """Walks through a torch pickle: checks every tensor against its storage, keeps nothing."""

    def __init__(self, stream: Bounded, size: int) -> None:
        super().__init__(stream, MAX_OPCODES)
        self.storages: dict[str, int] = {}  # key → bytes
        self._logical = MAX_SHARED * size

    def symbol(self, module: str, name: str) -> Symbol:
        return Symbol(f"{module}.{name}", self._call)

    def _call(self, call: Call) -> Any:
        known = call.name in CALLS or is_foreign(call.name)
        if call.name.startswith(("torch.", "builtins.", "__builtin__.")) and not known:
            raise RefusedError(f"calls {call.name}, which makes no plain tensor")
        if call.name == "torch._utils._rebuild_tensor_v2":
            self._tensor(*call.args[:4])
        return call

    def persistent_load(self, pid: Any) -> Call:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise RefusedError("refers to something outside that is no tensor data")
        _, kind, key, _, count = pid[:5]
        item = ITEM_BYTES.get(kind.name.rpartition(".")[2]) if isinstance(kind, Symbol) else None
        if item is None or not isinstance(key, str) or type(count) is not int or count < 0:
            raise RefusedError("has tensor data of a kind that weights do not have")
        if len(pid) > 5 and pid[5] is not None:
            raise RefusedError("has views of tensor data, as only PyTorch 0.1 wrote them")
        if self.storages.setdefault(key, count * item) != count * item:
            raise RefusedError(f"names tensor data {shown(key)} with two sizes")
        return Call("storage", (count, item))

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> None:
        if not isinstance(storage, Call) or storage.name != "storage":
            raise RefusedError("has a tensor without data")
        plain = [offset, *_sizes(shape), *_sizes(stride)]
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in plain):
            raise RefusedError("has a tensor without plain size and stride")
        count, item = storage.args
        number = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if number > count or (number and last >= count):
            raise RefusedError(f"has a tensor of {number} numbers on data for {count}")
        self._logical -= number * item
        if self._logical < 0:
            raise RefusedError("has many tensors on the same data: far more than the file's size")

    # Only the calls matter. What is put into containers is dropped: it needs no memory.
    def load_setitem(self) -> None:
        del self.stack[-2:]

    def load_setitems(self) -> None:
        self.pop_mark()

    def load_dict(self) -> None:
        self.pop_mark()
        self.append({})

    def load_empty_set(self) -> None:
        self.append({})

    def load_additems(self) -> None:
        self.pop_mark()

    def load_frozenset(self) -> None:
        self.load_dict()


def _sizes(value: Any) -> tuple[Any, ...]:
    """A tuple out of a tuple or a recorded ``torch.Size``."""
    if not isinstance(value, tuple) or len(value) > MAX_NDIM:
        raise RefusedError("has a tensor without plain size and stride")
    return value


def check_tensors(content: Any, file: Path) -> None:
    """Only dense CPU tensors of the usual dtypes, none larger than its memory.

    Raises InputError, naming ``file``; values (NaN) are the business of who uses them.
    """
    seen: dict[int, int] = {}
    for tensor in _tensors(content, MAX_DEPTH):
        if isinstance(tensor, torch.TypedStorage | torch.UntypedStorage):
            raise InputError(f"{file} holds tensor data that belong to no tensor")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_quantized:
            raise InputError(f"{file} holds a {type(tensor).__name__} that is no plain tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise InputError(f"{file} holds a tensor that is not dense on the CPU")
        if tensor.dtype not in DTYPES:
            raise InputError(f"{file} holds a tensor of {tensor.dtype}")
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise InputError(f"{file} holds a tensor that claims more numbers than it has")
        seen[storage.data_ptr()] = storage.nbytes()
    if sum(seen.values()) > file.stat().st_size:
        raise InputError(f"{file} claims to be larger than it is: damaged or crafted")


def _tensors(value: Any, depth: int) -> Iterator[Any]:
    if isinstance(value, torch.Tensor | torch.TypedStorage | torch.UntypedStorage):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        if depth == 0:
            raise InputError(f"a checkpoint is nested deeper than {MAX_DEPTH}")
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item, depth - 1)
