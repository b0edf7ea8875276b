"""Torch and safetensors files that were made to do harm, and honest ones to mutate."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from typing import Any

import torch
from hostile_pickles import Files, Runs, weights

PID = b"X\x07\x00\x00\x00storage"


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
