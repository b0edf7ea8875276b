"""Read a pickle of plain values and NumPy arrays without running anything that it names.

A list of allowed NumPy functions is not safe: ``dtype`` and ``ndarray`` given crafted arguments
read and write arbitrary memory. Here the names in a pickle only become inert records; arrays are
built by us from raw bytes, a fixed set of dtypes and a shape that fits the bytes exactly.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np

from runtime.errors import InputError

_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
KNOWN = frozenset(
    {(module, name) for module in _ARRAY_MODULES for name in ("_reconstruct", "scalar")}
    | {(module, "_frombuffer") for module in _BUFFER_MODULES}
    | {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
        ("builtins", "bytes"),
        ("__builtin__", "bytes"),
    }
)
DTYPES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
REFUSED_OPCODES = (
    *(pickle.PERSID, pickle.BINPERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)
MAX_DEPTH = 16
MAX_ITEMS = 200_000


class _RefusedError(Exception):
    """The pickle holds something else than plain values and arrays."""


class _Symbol:
    """A name from the pickle. Calling it records the call."""

    def __init__(self, module: str, name: str) -> None:
        if (module, name) not in KNOWN:
            raise _RefusedError(f"it names {module}.{name}")
        self.name = name

    def __call__(self, *args: Any) -> _Call:
        return _Call(self.name, args)


class _Call:
    """A recorded call, and the state that the pickle sets on its result."""

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name = name
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:  # items of an OrderedDict
        if self.name != "OrderedDict":
            raise _RefusedError(f"it sets items of {self.name}")
        if self.state is None:
            self.state = {}
        self.state[key] = value


def _refuse(self: Any) -> None:
    raise _RefusedError("it uses an opcode that plain data does not need")


class _Recorder(pickle._Unpickler):
    """The pure-Python unpickler: the C one allocates what a file of nine bytes tells it to."""

    dispatch = dict(pickle._Unpickler.dispatch)  # noqa: RUF012
    dispatch.update({opcode[0]: _refuse for opcode in REFUSED_OPCODES})

    def find_class(self, module: str, name: str) -> _Symbol:
        return _Symbol(module, name)


def load(data: bytes, source: str) -> Any:
    """Values in the pickle ``data``: dicts, lists, tuples, numbers, strings, bytes, arrays.

    ``source`` names the file in the message. Raises InputError for anything else.
    """
    try:
        # latin1: Caffe2 and Detectron files from Python 2 hold their raw bytes as str
        recorded = _Recorder(io.BytesIO(data), encoding="latin1").load()
        return _Builder().build(recorded, 0)
    except _RefusedError as error:
        raise InputError(f"{source} is not a safe weights file: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{source} is not a readable pickle ({reason})") from error


class _Builder:
    """Turns records into values; bounded in depth and number, so that no file can explode."""

    def __init__(self) -> None:
        self._items = 0

    def build(self, value: Any, depth: int) -> Any:
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise _RefusedError(
                f"it is nested deeper than {MAX_DEPTH} or holds over {MAX_ITEMS} items"
            )
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        if isinstance(value, dict):
            return {self._key(k): self.build(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.build(item, depth + 1) for item in value)
        if isinstance(value, _Call):
            return self._call(value, depth)
        raise _RefusedError(f"it holds a {type(value).__name__}")

    @staticmethod
    def _key(key: Any) -> str | int:
        if not isinstance(key, str | int):
            raise _RefusedError("a key of a dictionary is not a string")
        return key

    def _call(self, call: _Call, depth: int) -> Any:
        if call.name == "OrderedDict" and not call.args:
            return self.build(call.state or {}, depth)
        if call.name == "_reconstruct" and isinstance(call.state, tuple) and len(call.state) == 5:
            _, shape, dtype, fortran, raw = call.state
            return _array(raw, dtype, shape, "F" if fortran else "C")
        if call.name == "_frombuffer" and len(call.args) == 4:
            return _array(*call.args)
        if call.name == "scalar" and len(call.args) == 2:
            return _array(call.args[1], call.args[0], (), "C")[()]
        if call.name in ("encode", "bytes"):
            return _raw(call)
        raise _RefusedError(f"{call.name} is used in an unknown way")


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    kind = _dtype(dtype)
    data = _raw(raw)
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _RefusedError(f"an array has shape {shape!r}")
    if order not in ("C", "F") or math.prod(shape) * kind.itemsize != len(data):
        raise _RefusedError(f"an array of shape {shape} does not fit its {len(data)} bytes")
    array = np.frombuffer(data, dtype=kind).reshape(shape, order=order)
    return array.astype(kind.newbyteorder("="), order="C")  # own, native, writable memory


def _dtype(record: Any) -> np.dtype:
    if not isinstance(record, _Call) or record.name != "dtype" or not record.args:
        raise _RefusedError("an array has no plain dtype")
    name = record.args[0]
    if not isinstance(name, str) or name.lstrip("<>=|") not in DTYPES:
        raise _RefusedError(f"an array has dtype {name!r}")
    # Of the dtype's own state only the byte order is taken: its flags could claim objects.
    state = record.state
    swapped = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    return np.dtype(name.lstrip("<>=|")).newbyteorder(">" if swapped else "<")


def _raw(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):  # raw data of Python 2, read as latin1
        return value.encode("latin1")
    if isinstance(value, _Call) and value.name == "bytes" and not value.args:
        return b""
    if isinstance(value, _Call) and value.name == "encode" and len(value.args) == 2:
        text, codec = value.args
        if isinstance(text, str) and codec in ("latin1", "latin-1"):
            return text.encode("latin1")
    raise _RefusedError("raw data of an array is not bytes")
