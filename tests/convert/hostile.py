"""Files that were made to do harm, and honest ones to mutate: small, each by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy._core.multiarray as multiarray
import torch

Files = dict[str, bytes]
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
PID = b"X\x07\x00\x00\x00storage"


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


# ---------------------------------------------------------------------------------- torch files


def state() -> dict[str, torch.Tensor]:
    """A few tensors of several dtypes, one of them a view."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3)
    return {
        "conv1.weight": weight,
        "view": weight[:, 1:2],
        "half": torch.ones(5).half(),
        "bfloat": torch.ones(5).bfloat16(),
        "bn1.num_batches_tracked": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }


def saved(content: Any, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def honest_torch() -> Files:
    content = {"state_dict": state(), "epoch": 3, "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}
    from safetensors.torch import save

    plain = {name: tensor.clone() for name, tensor in state().items()}
    return {
        "zip.pth": saved(content),
        "legacy.pth": saved(content, legacy=True),
        "plain.safetensors": save(plain, {"format": "pt"}),
    }


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return stream.getvalue()


def structure(pickled: bytes, data: bytes = bytes(64)) -> bytes:
    """A torch file of this data.pkl, with 64 bytes as its tensor data 0."""
    parts = {"data.pkl": pickled, "byteorder": b"little", "data/0": data, "version": b"3\n"}
    return zipped({f"archive/{name}": content for name, content in parts.items()})


def tensor(
    numel: object = 4,
    offset: object = 0,
    size: object = (4,),
    stride: object = (1,),
    kind: str = "FloatStorage",
    key: str = "0",
) -> bytes:
    """data.pkl of one tensor, whatever is claimed of it."""

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1].split(b"q\x00")[0] if value != () else b")"

    pid = (
        b"(" + PID + b"ctorch\n" + kind.encode() + b"\n" + plain(key) + plain("cpu") + plain(numel)
    )
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((" + pid[1:] + b"tQ"
    rest = b"\x89ccollections\nOrderedDict\n)RtR."
    return head + plain(offset) + plain(size) + plain(stride) + rest


def _quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)


def torch_structures() -> Files:
    """Sound zip files whose data.pkl lies."""
    claims: dict[str, dict[str, object]] = {
        "stride 0": {"size": (2**40,), "stride": (0,)},
        "a little stride 0": {"size": (8, 4), "stride": (0, 1)},
        "beyond its end": {"size": (5,)},
        "offset beyond its end": {"offset": 3, "size": (2,)},
        "stride beyond its end": {"size": (2,), "stride": (4,)},
        "negative offset": {"offset": -1},
        "negative size": {"size": (-4,)},
        "negative stride": {"stride": (-1,)},
        "overflow": {"size": (2**62, 4), "stride": (1, 1)},
        "size and stride differ": {"size": (2, 2), "stride": (1,)},
        "many dimensions": {"size": (1,) * 100, "stride": (1,) * 100},
        "size is text": {"size": "aaaa"},
        "offset is a list": {"offset": []},
        "storage larger than its file": {"numel": 2**33, "size": (2**33,)},
        "storage of another key": {"key": "1"},
        "storage key with a path": {"key": "../../../etc/passwd"},
        "negative storage": {"numel": -4},
        "storage size is text": {"numel": "4"},
        "complex": {"kind": "ComplexFloatStorage"},
        "quantised": {"kind": "QInt8Storage"},
        "unknown kind": {"kind": "load"},
    }
    files = {name: structure(tensor(**claim)) for name, claim in claims.items()}  # type: ignore[arg-type]
    calls = {
        "bytearray": Runs(bytearray, 10**9),
        "tensor by its constructor": Runs(torch.Tensor, 300_000_000),
        "os.system": Runs(os.system, "touch ran"),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(2**40, device="meta"),
        "quantised tensor": _quantised(),
        "complex tensor": torch.ones(3, dtype=torch.complex64),
        "optimiser": torch.optim.SGD([torch.ones(1)], 0.1),
        "function": torch.relu,
    }
    files |= {name: saved({"x": value}) for name, value in calls.items()}
    many = b"\x80\x02]q\x00(" + tensor()[2:-1] * 2000 + b"e."
    return files | {
        "lists without end": structure(b"\x80\x02" + b"]" * (4 << 20) + b"."),
        "marks without end": structure(b"(" * (4 << 20) + b"."),
        "memo of 2 GB": structure(b"\x80\x02]r\xff\xff\xff\x07" + b"0N("),
        "no end": structure(tensor()[:-1]),
        "nothing": structure(b""),
        "other text": structure(b"hello"),
        "many tensors on one storage": structure(many),
        "persistent id is text": structure(b"\x80\x02X\x01\x00\x00\x00aQ."),
        "persistent module": structure(b"\x80\x02(X\x06\x00\x00\x00moduleNNNNtQ."),
    }


def torch_containers() -> Files:
    """Files whose zip, tar or sequence of pickles lies."""
    good = members(honest_torch()["zip.pth"])
    root = next(name for name in good if name.endswith("data.pkl")).removesuffix("data.pkl")
    whole, legacy = zipped(good), honest_torch()["legacy.pth"]
    twice = io.BytesIO(whole)
    with zipfile.ZipFile(twice, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(f"{root}data.pkl", b"\x80\x02N.")
    weight = whole.index(good[f"{root}data/0"])
    flipped = whole[: weight + 9] + bytes([whole[weight + 9] ^ 1]) + whole[weight + 10 :]
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive_tar:
        info = tarfile.TarInfo("../ran")
        info.size = 3
        archive_tar.addfile(info, io.BytesIO(b"abc"))
    bomb = {**good, f"{root}data/0": bytes(50 << 20)}
    return {
        "compressed": zipped(good, zipfile.ZIP_DEFLATED),
        "compressed bomb": zipped(bomb, zipfile.ZIP_DEFLATED),
        "two data.pkl": twice.getvalue(),
        "two folders": zipped({**good, "other/data.pkl": b"\x80\x02N."}),
        "member outside": zipped({**good, "../ran": b"abc"}),
        "no data.pkl": zipped({n: d for n, d in good.items() if not n.endswith("data.pkl")}),
        "no tensor data": zipped({n: d for n, d in good.items() if "/data/" not in n}),
        "big-endian": zipped({**good, f"{root}byteorder": b"big"}),
        "flipped bit": flipped,
        "truncated": whole[: len(whole) // 2],
        "end only": whole[-100:],
        "empty": b"",
        "zeros": bytes(1000),
        "tar": tar.getvalue(),
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "numpy pickle": pickle.dumps(weights(), 2),
        "legacy, truncated": legacy[:-7],
        "legacy, longer": legacy + bytes(8),
        "legacy, then a zip": legacy + whole,
        "zip start only": whole[:4] + legacy,
        "legacy, magic number only": legacy[:20],
        "legacy, another magic number": legacy.replace(b"\x6c\xfc\x9c", b"\x6c\xfc\x9d", 1),
        "legacy that runs": b"cposix\nsystem\n(S'touch ran'\ntR." + legacy,
    }


def safetensors_files() -> Files:
    """Headers that lie."""

    def made(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def one(**changes: object) -> dict:
        return {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}

    entry = json.dumps(one()["x"]).encode()
    return {
        "header of 2^63 bytes": made(one(), length=2**63),
        "header of 200 MB": made(one(), length=200 << 20),
        "header of lists": made(b"[" * 1_000_000),
        "header of nothing": made(b"{}"),
        "no header": b"\x00" * 7,
        "header is a list": made([1, 2]),
        "name twice": made(b'{"x":' + entry + b',"x":' + entry + b"}"),
        "negative offset": made(one(data_offsets=[-16, 0])),
        "reversed": made(one(data_offsets=[16, 0])),
        "overlap": made(one() | {"y": one()["x"]}),
        "hole": made(one(data_offsets=[4, 20]), bytes(20)),
        "shape bomb": made(one(shape=[2**40, 2**40])),
        "shape times zero": made(one(shape=[2**62, 0], data_offsets=[0, 0]), b"x"),
        "shape too large": made(one(shape=[5])),
        "shape is text": made(one(shape="4")),
        "shape is a fraction": made(one(shape=[4.0])),
        "unknown dtype": made(one(dtype="F4")),
        "dtype is a list": made(one(dtype=["F32"])),
        "no dtype": made({"x": {"shape": [4], "data_offsets": [0, 16]}}),
        "trailing data": made(one(), bytes(17)),
        "data missing": made(one(), bytes(15)),
        "not text": made(b"\xff\xfe\x00"),
    }


def torch_files() -> Files:
    """All crafted torch and safetensors files, with their suffixes."""
    files = {
        f"{name}.pth": data for name, data in (torch_structures() | torch_containers()).items()
    }
    return files | {f"{name}.safetensors": data for name, data in safetensors_files().items()}
