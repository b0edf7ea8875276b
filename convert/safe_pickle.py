"""Read a pickle of plain values and NumPy arrays without running anything that it names.

A list of allowed NumPy functions is not safe: ``dtype`` and ``ndarray`` given crafted arguments
read and write arbitrary memory. Here the names in a pickle only become inert records; arrays are
built by us from raw bytes, a fixed set of dtypes and a shape that fits the bytes exactly.
"""

from __future__ import annotations

import math
import os
import pickle
from typing import IO, Any

import numpy as np

from convert.recorder import Bounded, Call, Recorder, RefusedError, Symbol, shown
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
MAX_DEPTH = 16
MAX_NDIM = 8
MAX_ITEMS = 200_000


class _Recorder(Recorder):
    REFUSED = (
        *Recorder.REFUSED,
        *(pickle.BINPERSID, pickle.NEWOBJ),
        *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
    )

    def symbol(self, module: str, name: str) -> Symbol:
        if (module, name) not in KNOWN:
            raise RefusedError(f"names {module}.{name}")
        return Symbol(name, lambda call: call)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        _set_items(self.stack[-1], items)


def _set_items(target: Any, items: list[Any]) -> None:
    if isinstance(target, Call) and target.name == "OrderedDict":
        target.state = target = {} if target.state is None else target.state
    if not isinstance(target, dict):
        raise RefusedError("sets items of something that has none")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Strings are hashed with a secret; of other keys a file could hold many of one hash.
        if not isinstance(key, str) and not (isinstance(key, int) and key.bit_length() < 64):
            raise RefusedError("has a key of a dictionary that is no string")
        target[key] = value


def load(stream: IO[bytes], source: str) -> Any:
    """Values in the pickle ``stream``: dicts, lists, tuples, numbers, strings, bytes, arrays.

    Needs memory of about the file's size. ``source`` names the file in the message. Raises
    InputError for anything else.
    """
    try:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        recorded = _Recorder(Bounded(stream, size)).load()
        return _Builder(size).build(recorded, 0)
    except RefusedError as error:
        raise InputError(f"{source} is not a safe weights file: it {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:100]}"
        raise InputError(f"{source} is not a readable pickle ({reason})") from error


class _Builder:
    """Turns records into values; bounded in depth, number and bytes: no file can explode."""

    def __init__(self, size: int) -> None:
        self._items = 0
        self._bytes = size  # that arrays may still have: raw data could be used many times
        self._arrays: dict[int, Any] = {}

    def build(self, value: Any, depth: int) -> Any:
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise RefusedError(f"is nested deeper than {MAX_DEPTH} or holds over {MAX_ITEMS} items")
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        if isinstance(value, dict):
            return {key: self.build(v, depth + 1) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.build(item, depth + 1) for item in value)
        if isinstance(value, Call):
            return self._call(value, depth)
        raise RefusedError(f"holds a {type(value).__name__}")

    def _call(self, call: Call, depth: int) -> Any:
        if call.name == "OrderedDict" and not call.args:
            state = {} if call.state is None else call.state
            if not isinstance(state, dict):
                raise RefusedError("has an OrderedDict with a state")
            return self.build(state, depth)
        if call.name in ("encode", "bytes"):
            return bytes(_raw(call))
        if id(call) not in self._arrays:  # one array under several names is one
            self._arrays[id(call)] = self._build_array(call)
        return self._arrays[id(call)]

    def _build_array(self, call: Call) -> Any:
        if call.name == "_reconstruct" and isinstance(call.state, tuple) and len(call.state) == 5:
            _, shape, dtype, fortran, raw = call.state
            if type(fortran) is not bool:
                raise RefusedError("has an array in no known order")
            return self._array(raw, dtype, shape, "F" if fortran else "C")
        if call.name == "_frombuffer" and len(call.args) == 4:
            return self._array(*call.args)
        if call.name == "scalar" and len(call.args) == 2:
            return self._array(call.args[1], call.args[0], (), "C")[()]
        raise RefusedError(f"uses {call.name} in an unknown way")

    def _array(self, raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        kind, data = _dtype(dtype), _raw(raw)
        if not isinstance(shape, tuple) or len(shape) > MAX_NDIM:
            raise RefusedError("has an array without a plain shape")
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in shape) or order not in ("C", "F"):
            raise RefusedError("has an array without a plain shape")
        self._bytes -= len(data)
        if math.prod(shape) * kind.itemsize != len(data) or self._bytes < 0:
            raise RefusedError(f"has an array of shape {shape} that does not fit its bytes")
        array = np.frombuffer(data, dtype=kind).reshape(shape, order=order)
        if kind == np.bool_:
            return array.view(np.uint8) != 0  # nothing but 0 and 1
        # own, native, writable memory; copied only where it is not yet
        kind = kind.newbyteorder("=")
        return np.require(array, dtype=kind, requirements=["C", "W", "A"])


def _dtype(record: Any) -> np.dtype:
    if not isinstance(record, Call) or record.name != "dtype" or not record.args:
        raise RefusedError("has an array without a plain dtype")
    name = record.args[0]
    if not isinstance(name, str) or name not in DTYPES:
        raise RefusedError(f"has an array of dtype {shown(name)}")
    # Of the dtype's own state only the byte order is taken: its flags could claim objects.
    state = record.state
    swapped = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    return np.dtype(name).newbyteorder(">" if swapped else "<")


def _raw(value: Any) -> bytes | bytearray:
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, str):  # raw data of Python 2, read as latin1
        return value.encode("latin1")
    if isinstance(value, Call) and value.name == "bytes" and not value.args:
        return b""
    if isinstance(value, Call) and value.name == "encode" and len(value.args) == 2:
        text, codec = value.args
        if isinstance(text, str) and codec in ("latin1", "latin-1"):
            return text.encode("latin1")
    raise RefusedError("has raw data of an array that are not bytes")
