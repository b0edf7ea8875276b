"""Honest pickles give equal values; crafted ones are refused and run nothing."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert import safe_pickle
from runtime.errors import InputError

VALUES = {
    "model": OrderedDict(
        [
            ("c", np.arange(6, dtype=np.float32).reshape(2, 3)),
            ("f", np.asfortranarray(np.arange(6.0).reshape(2, 3))),
            ("big", np.arange(3, dtype=">i4")),
            ("empty", np.zeros((0, 4), np.float16)),
            ("scalar array", np.array(5, dtype=np.int64)),
            ("bool", np.array([True, False])),
        ]
    ),
    "scalar": np.float32(1.5),
    "list": [1, 2.5, "text", b"bytes", None, (True, False)],
}


def load(data: bytes) -> object:
    return safe_pickle.load(io.BytesIO(data), "x")


@pytest.mark.parametrize("protocol", range(6))
def test_honest_pickles(protocol: int) -> None:
    loaded = load(pickle.dumps(VALUES, protocol))
    assert loaded["list"] == VALUES["list"]
    assert loaded["scalar"] == 1.5
    for name, array in VALUES["model"].items():
        np.testing.assert_array_equal(loaded["model"][name], array)
        assert loaded["model"][name].dtype == array.dtype.newbyteorder("=")
        assert loaded["model"][name].flags.writeable


class Runs:
    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def crafted(tmp: Path) -> dict[str, bytes]:
    import numpy._core.multiarray as multiarray

    class ObjectArray:
        def __reduce__(self) -> tuple:
            state = (1, (1,), np.dtype("O"), False, b"A" * 8)
            return multiarray._reconstruct, (np.ndarray, (0,), b"b"), state

    class WrongSize:
        def __reduce__(self) -> tuple:
            state = (1, (10**9,), np.dtype("f4"), False, b"A" * 8)
            return multiarray._reconstruct, (np.ndarray, (0,), b"b"), state

    deep: list = []
    for _ in range(100):
        deep = [deep]
    bomb: list = []
    for _ in range(40):
        bomb = [bomb, bomb]
    return {
        "os.system": pickle.dumps(Runs(os.system, f"touch {tmp / 'ran'}")),
        "eval": pickle.dumps(Runs(eval, "1")),
        "numpy.load": pickle.dumps(Runs(np.load, "x")),
        "ndarray by its constructor": pickle.dumps(Runs(np.ndarray, (1,), "O", b"A" * 8)),
        "object array": pickle.dumps(ObjectArray()),
        "size does not fit": pickle.dumps(WrongSize()),
        "huge shape": pickle.dumps(Runs(multiarray._reconstruct, np.ndarray, (10**9,), b"B")),
        "codec": pickle.dumps({"x": Runs(__import__("codecs").encode, "x", "rot13")}),
        "persistent id": b"\x80\x04\x8c\x01xQ.",
        "extension": b"\x80\x02\x82\x01.",
        "deep": pickle.dumps(deep),
        "bomb": pickle.dumps(bomb),
        "2 GB memo": b"\x80\x02]r\xff\xff\xff\x07.",
        "truncated": pickle.dumps(VALUES)[:-30],
        "nothing": b"",
        "key": pickle.dumps({(1, 2): 3}),
    }


@pytest.mark.parametrize("name", list(crafted(Path())))
def test_crafted_pickles_are_refused(name: str, tmp_path: Path) -> None:
    data = crafted(tmp_path)[name]
    if name == "2 GB memo":  # honest content: it must only not allocate what it names
        assert load(data) == []
        return
    with pytest.raises(InputError, match="x is not a"):
        load(data)
    assert not (tmp_path / "ran").exists()


@settings(max_examples=300)
@given(st.data())
def test_mutants_never_raise_anything_else(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(VALUES, 4))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        load(bytes(content))
