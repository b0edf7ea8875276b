"""An unpickler that builds nothing: names in a pickle become inert records.

The pure-Python unpickler of the standard library, with its size under control: what a small file
claims is never allocated, and no more than ``MAX_OPCODES`` steps are taken.
"""

# ruff: noqa: D102  a method load_NAME is the opcode NAME of the pickle module
from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from typing import IO, Any

MAX_OPCODES = 200_000  # a ResNet-152 with its optimiser needs some 60,000
LARGE = 1 << 16  # bytes of raw data from which on they are read into memory of their own
MAX_WIDE = 1 << 20  # bytes of text beyond Latin-1, which takes four times its size in memory
MAX_NAME = 256
MAX_LONG = 16  # bytes of an integer

_WIDE_UTF8 = re.compile(rb"[\xc4-\xff]")
_WIDE_ESCAPE = re.compile(rb"\\u(?!00)|\\U(?!000000)")


class RefusedError(Exception):
    """The pickle holds something that is not wanted. The message completes "it ..."."""


def shown(value: Any) -> str:
    """A value of the file for a message: short, whatever it is."""
    if isinstance(value, str):
        return repr(value[:60])
    return str(value) if isinstance(value, int) and abs(value) < 1 << 64 else type(value).__name__


class Symbol:
    """A name from the pickle. Calling it records the call."""

    __slots__ = ("_calls", "name")

    def __init__(self, name: str, calls: Callable[[Call], Any]) -> None:
        self.name = name
        self._calls = calls

    def __call__(self, *args: Any) -> Any:
        return self._calls(Call(self.name, args))


class Call:
    """A recorded call, and the state that the pickle sets on its result."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name = name
        self.args = args
        self.state: Any = None


class Bounded:
    """A stream that never allocates more than it has."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self.left = size

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        if not 0 <= count <= self.left:
            raise RefusedError("ends too early: it is cut short")
        self.left -= count
        return self._stream.read(count)

    def readline(self) -> bytes:
        """Up to the next line break."""
        line = self._stream.readline(self.left)
        self.left -= len(line)
        return line


class _Counted(dict[int, Any]):
    """The unpickler's table of opcodes, which counts how often it is asked."""

    def __init__(self, table: dict[int, Any], most: int) -> None:
        super().__init__(table)
        self.left = most

    def __getitem__(self, opcode: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RefusedError("takes too many steps for a file of weights")
        return super().__getitem__(opcode)


_Base: Any = pickle._Unpickler


class Recorder(_Base):
    """Reads one pickle from ``stream``. Subclasses say which names and calls they take."""

    REFUSED: tuple[bytes, ...] = (
        *(pickle.PERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX),
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    )

    def __init__(self, stream: Bounded, opcodes: int = MAX_OPCODES) -> None:
        super().__init__(stream, encoding="latin1")  # Python 2 kept raw bytes in its str
        self._stream = stream
        self._wide = 0
        table = {code: getattr(type(self), f"load_{name}", f) for code, (name, f) in _TABLE.items()}
        table |= {code[0]: _refuse for code in self.REFUSED}
        self.dispatch = _Counted(table, opcodes)

    def symbol(self, module: str, name: str) -> Any:
        """What stands for ``module.name``; RefusedError where it is not wanted."""
        raise NotImplementedError

    def find_class(self, module: str, name: str) -> Any:
        """Never imports anything."""
        if len(module) + len(name) > MAX_NAME:
            raise RefusedError("has a name of excessive length")
        return self.symbol(module, name)

    def load_global(self) -> None:
        module, name = self.readline(), self.readline()
        if len(module) + len(name) > MAX_NAME:
            raise RefusedError("has a name of excessive length")
        self.append(self.symbol(module[:-1].decode(), name[:-1].decode()))

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Call):
            raise RefusedError("sets the state of something that has none")
        self.stack[-1].state = state

    def load_newobj(self) -> None:
        args, symbol = self.stack.pop(), self.stack.pop()
        if not isinstance(symbol, Symbol) or not isinstance(args, tuple):
            raise RefusedError("makes an object of no class")
        self.append(symbol(*args))

    def load_long1(self) -> None:
        self._long(self.read(1)[0])

    def load_long4(self) -> None:
        self._long(struct.unpack("<i", self.read(4))[0])

    def _long(self, size: int) -> None:
        if not 0 <= size <= MAX_LONG:
            raise RefusedError("holds an integer of excessive length")
        self.append(pickle.decode_long(self.read(size)))

    def load_unicode(self) -> None:
        line = self.readline()[:-1]
        self._count_wide(line, _WIDE_ESCAPE)
        self.append(str(line, "raw-unicode-escape"))

    def load_binunicode(self) -> None:
        self._text(struct.unpack("<I", self.read(4))[0])

    def load_binunicode8(self) -> None:
        self._text(struct.unpack("<Q", self.read(8))[0])

    def load_short_binunicode(self) -> None:
        self._text(self.read(1)[0])

    def _text(self, size: int) -> None:
        data = self.read(size)
        self._count_wide(data, _WIDE_UTF8)
        self.append(str(data, "utf-8", "surrogatepass"))

    def _count_wide(self, data: bytes, pattern: re.Pattern[bytes]) -> None:
        if pattern.search(data):
            self._wide += len(data)
            if self._wide > MAX_WIDE:
                raise RefusedError("holds more text than a file of weights has")

    def load_binbytes(self) -> None:
        self._bytes(struct.unpack("<I", self.read(4))[0])

    def load_binbytes8(self) -> None:
        self._bytes(struct.unpack("<Q", self.read(8))[0])

    def load_bytearray8(self) -> None:
        self._bytes(struct.unpack("<Q", self.read(8))[0])

    def _bytes(self, size: int) -> None:
        """Raw data; large ones in memory that an array may take over and write to."""
        data = self.read(size)
        self.append(data if size < LARGE else bytearray(data))


def _refuse(self: Any) -> None:
    raise RefusedError("uses an opcode that plain data does not need")


# opcode → the method's name without "load_" and the standard library's function
_TABLE = {code: (f.__name__.removeprefix("load_"), f) for code, f in _Base.dispatch.items()}
