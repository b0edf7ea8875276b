"""Pickles that were made to do harm, and honest ones to mutate: small, each by name."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy._core.multiarray as multiarray
import torch

Files = dict[str, bytes]
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


class Runs:
    """Pickles to a call."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


class With:
    """Pickles to a call whose result is given a state."""

    def __init__(self, function: object, args: tuple, state: object) -> None:
        self.call = function, args, state

    def __reduce__(self) -> tuple:
        return self.call


def array(dtype: object, shape: tuple, raw: object, order: object = False) -> With:
    args = (np.ndarray, (0,), b"b")
    return With(multiarray._reconstruct, args, (1, shape, dtype, order, raw))


def _dtype(name: str, *state: object) -> With:
    return With(np.dtype, (name, False, True), state or (3, "<", None, None, None, -1, -1, 0))


def _nested(depth: int, width: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value] * width
    return value


def _text(opcode: str, value: bytes) -> bytes:
    return opcode.encode() + value + b"\n."


def runs_something() -> Files:
    """Pickles that name code to run."""
    functions: dict[str, tuple] = {
        "os.system": (os.system, "touch ran"),
        "eval": (eval, "open('ran','w')"),
        "exec": (exec, "open('ran','w')"),
        "open": (open, "ran", "w"),
        "getattr": (getattr, "x", "__class__"),
        "__import__": (__import__, "antigravity"),
        "numpy.load": (np.load, "x"),
        "numpy.frombuffer": (np.frombuffer, b"12345678", "O"),
        "ndarray by its constructor": (np.ndarray, (1,), "O", b"A" * 8),
        "stride bomb": (np.ndarray, (2**40,), "u1", b"a", 0, (0,)),
        "bytearray": (bytearray, 10**10),
        "bytes of a number": (bytes, 10**10),
        "torch's inner load": (torch.storage._load_from_bytes, b"x"),
        "torch.load": (torch.load, "x"),
        "tensor": (torch.Tensor, 300_000_000),
        "range": (range, 10**9),
    }
    files = {name: pickle.dumps(Runs(*call)) for name, call in functions.items()}
    return files | {
        "posix.system, protocol 0": b"cposix\nsystem\n(S'touch ran'\ntR.",
        "instance": b"(S'touch ran'\niposix\nsystem\n.",
        "object": b"(cposix\nsystem\nS'touch ran'\no.",
        "new object": b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85\x81.",
        "copyreg": b"ccopyreg\n_reconstructor\n(cposix\nsystem\nc__builtin__\nobject\nNtR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93\x8c\x03ran\x85R.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent id": b"\x80\x04\x8c\x01xQ.",
        "persistent id, protocol 0": b"Px\n.",
        "codec": pickle.dumps({"x": Runs(__import__("codecs").encode, "x", "rot13")}),
        "codec unknown": b"c_codecs\nencode\n(Vx\nVbase64\ntR.",
    }


def breaks_numpy() -> Files:
    """Arrays and dtypes whose parts do not fit each other."""
    f4, pointer = _dtype("f4"), b"A" * 8
    lying = {
        "object array": array(np.dtype("O"), (1,), pointer),
        "object dtype with flags 0": array(
            With(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)),
            (1,),
            pointer,
        ),
        "structured dtype": array(
            With(np.dtype, ("V8", False, True), (3, "|", None, ("f",), {"f": (f4, 0)}, 8, 1, 27)),
            *((1,), pointer),
        ),
        "object scalar": Runs(multiarray.scalar, np.dtype("O"), pointer),
        "size does not fit": array(f4, (10**9,), pointer),
        "negative size": array(f4, (-2,), pointer),
        "size that overflows": array(f4, (2**62, 4), b""),
        "nothing times much": array(f4, (0, 2**62), b""),
        "size is a float": array(f4, (2.0,), pointer),
        "size is true": array(_dtype("b1"), (True,), b"1"),
        "many dimensions": array(f4, (1,) * 70, b"1234"),
        "raw data is a list": array(f4, (1,), [1, 2, 3, 4]),
        "raw data is a number": array(f4, (1,), 10**12),
        "order is a bomb": array(f4, (2,), pointer, _nested(30, 2)),
        "shape is a bomb": array(f4, tuple(_nested(30, 2)), pointer),
        "dtype is a bomb": array(_nested(30, 2), (2,), pointer),
        "dtype name is a bomb": array(Runs(np.dtype, "f" * 50_000), (2,), pointer),
        "datetime": array(_dtype("M8"), (1,), pointer),
        "text": array(_dtype("U2"), (1,), pointer),
        "long double": array(_dtype("f16"), (1,), pointer * 2),
    }
    files = {name: pickle.dumps({"x": value}) for name, value in lying.items()}
    files["huge shape"] = pickle.dumps(Runs(multiarray._reconstruct, np.ndarray, (10**9,), b"B"))
    # one piece of raw data, converted to another byte order many times
    big = b"S'>'\n"
    shared = b"(dp0\n" + b"X\x00\x00\x04\x00" + b"a" * (1 << 18) + b"p1\n0"
    one = (
        RECONSTRUCT
        + b"(I1\n(I65536\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\n"
        + big
        + b"NNNtbI00\ng1\ntb"
    )
    shared += b"g0\n" + b"".join(b"I%d\n" % i + one + b"s" for i in range(1000)) + b"."
    return files | {"shared raw data": shared}


def exhausts() -> Files:
    """Small files that ask for much memory or time."""
    long = b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1"
    wide = "\U0001f600" + "a" * (4 << 20)
    return {
        "deep": pickle.dumps(_nested(100, 1)),
        "bomb": pickle.dumps(_nested(40, 2)),
        "wide": pickle.dumps([1] * 300_000),
        "2 GB memo": b"\x80\x02]r\xff\xff\xff\x07.",
        "2 GB memo, text": b"]p134217727\n.",
        "bytearray of 4 GB": b"\x80\x05\x96" + struct.pack("<Q", 1 << 32) + b"x.",
        "bytes of 4 GB": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 32) + b"x.",
        "text of 4 GB": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 32) + b"x.",
        "frame of 4 GB": b"\x80\x04\x95" + struct.pack("<Q", 1 << 32) + b"N.",
        "negative length": b"\x80\x02T\xff\xff\xff\xff.",
        "long integer": long,
        "integer of many digits": _text("L", b"9" * 5000 + b"L"),
        "lists without end": b"\x80\x02" + b"]" * (4 << 20) + b".",
        "dictionaries without end": b"\x80\x02" + b"}" * (4 << 20) + b".",
        "marks without end": b"(" * (4 << 20) + b".",
        "text of four times its size": b"\x80\x02X"
        + struct.pack("<I", len(wide.encode()))
        + wide.encode()
        + b".",
        "escaped text": b"V" + b"\\U0001f600" + b"a" * (4 << 20) + b"\n.",
        "long name": b"c" + b"a" * (4 << 20) + b"\nx\n.",
        "keys of one hash": b"(d"
        + b"".join(b"L%dL\nNs" % (7 + i * (2**61 - 1)) for i in range(40_000))
        + b".",
        "keys of one hash, tuples": pickle.dumps({(1, i): 0 for i in range(100)}),
        "set": pickle.dumps({1, 2, 3}),
        "key": pickle.dumps({(1, 2): 3}),
        "contains itself": b"\x80\x02]q\x00h\x00a.",
        "dictionary in itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    }


def broken() -> Files:
    """No attack: what disks and downloads do."""
    good = pickle.dumps(weights(), 4)
    return {
        "nothing": b"",
        "truncated": good[:-30],
        "first byte only": good[:1],
        "zeros": bytes(1000),
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "state of a dictionary": b"\x80\x02}}b.",
        "state of a symbol": b"cnumpy\ndtype\n(dVname\nVencode\nsb.",
        "items of a list": b"\x80\x02]X\x01\x00\x00\x00aK\x01s.",
        "popped too much": b"0.",
        "no memo": b"h\x05.",
        "ordered dictionary with a state": b"ccollections\nOrderedDict\n)RN(S'x'\ntb.",
    }


def pickles() -> Files:
    """All crafted pickles."""
    return runs_something() | breaks_numpy() | exhausts() | broken()


# What a crafted file of those may give: it is harmless.
HARMLESS = {"2 GB memo": [], "2 GB memo, text": []}


def weights() -> dict[str, Any]:
    """Arrays of every kind that weights have."""
    rng = np.random.default_rng(0)
    conv = rng.standard_normal((4, 3, 3, 3), dtype=np.float32)
    return {
        "model": OrderedDict(
            [
                ("stem.conv1.weight", conv),
                ("fortran", np.asfortranarray(conv)),
                ("big", np.arange(3, dtype=">i4")),
                ("empty", np.zeros((0, 4), np.float16)),
                ("counter", np.array(5, dtype=np.int64)),
                ("bool", np.array([True, False])),
            ]
        ),
        "scalar": np.float32(1.5),
        "list": [1, 2.5, "text", b"bytes", None, (True, False)],
    }


def honest_pickles() -> Files:
    """Every protocol; Caffe2's blobs and Detectron2's zoo as Python 2 and 3 wrote them."""
    files = {f"protocol {p}": pickle.dumps(weights(), p) for p in range(6)}
    files |= {f"large, protocol {p}": pickle.dumps(large(), p) for p in range(6)}
    blobs = {"conv1_w": np.ones((2, 3, 7, 7), np.float32), "res_conv1_bn_s": np.ones(2, np.float32)}
    files["caffe2"] = pickle.dumps({"blobs": blobs, "cfg": "MODEL: x"}, 2)
    zoo = {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
    files["zoo"] = pickle.dumps(zoo, 4)
    return files | {"python 2": python2(np.arange(6, dtype="<f4"))}


def large() -> dict[str, Any]:
    """Above the size from which raw data are read in another way."""
    return {"x": np.arange(1 << 16, dtype=np.float64), "y": np.arange(1 << 16, dtype=">f4")}


def python2(values: np.ndarray) -> bytes:
    """As NumPy 1 under Python 2 pickled ``{"x": values}`` with protocol 2: raw data is a str."""
    raw = values.tobytes()
    return (
        b"\x80\x02}q\x01U\x01xq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K"
        + bytes([len(values)])
        + b"\x85cnumpy\ndtype\nU\x02f4"
        b"K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)])
        + raw
        + b"tbs."
    )
