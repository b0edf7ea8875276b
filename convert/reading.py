"""Read a checkpoint file safely, whatever toolkit wrote it. Nothing in a file is ever run."""

from __future__ import annotations

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from convert import safe_pickle
from convert.foreign import records
from convert.torch_file import LEGACY_START, ZIP_START, check_tensors, check_torch_file
from runtime.errors import InputError

MAX_HEADER = 2 << 20  # bytes of a safetensors header; a ResNet-152 has some 100 kB
SAFETENSORS_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1},
    "BOOL": 1,
}


def read_checkpoint(path: str | Path) -> Any:
    """Content of ``path``: a torch file, a safetensors file or a pickle of NumPy arrays.

    Tensors come on the CPU. Raises InputError for a missing, damaged or unsafe file.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"no checkpoint at {str(file)!r}: name an existing file")
    try:
        return _READERS[_kind(file)](file)
    except OSError as error:
        raise InputError(f"cannot read {str(file)!r}: {error.strerror or error}") from error


def _kind(file: Path) -> str:
    """A name's ending among ``_READERS``: by the first bytes, whatever the name.

    Only a pickle of NumPy arrays must have its ending: many things begin as it does.
    """
    with open(file, "rb") as stream:
        head = stream.read(32)
    if head.startswith(ZIP_START) or LEGACY_START in head:
        return ".pth"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size:
        return ".safetensors"
    return file.suffix if file.suffix in _READERS else ".pth"


def _read_pickle(file: Path) -> Any:
    with open(file, "rb") as stream:
        return safe_pickle.load(stream, str(file))


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        _check_header(file)
        return load_file(file)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:100]}"
        raise InputError(f"{file} is not a readable safetensors file ({reason})") from error


def _check_header(file: Path) -> None:
    """ValueError where the header is not what the format asks for; no name may come twice."""
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        data = file.stat().st_size - 8 - length
        if length > MAX_HEADER or data < 0:
            raise ValueError(f"a header of {length} bytes")
        text = stream.read(length).decode("utf-8")  # json itself would guess UTF-16 and -32, too
    header = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("a header that is no table")
    end = 0
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    for entry in sorted(entries, key=lambda entry: entry["data_offsets"]):
        start, stop = entry["data_offsets"]
        shape, item = entry["shape"], SAFETENSORS_BYTES.get(entry["dtype"], 0)
        if not item or not all(type(n) is int and n >= 0 for n in (start, stop, *shape)):
            raise ValueError("a tensor of another dtype or shape than weights have")
        if start != end or stop - start != math.prod(shape) * item:
            raise ValueError("tensors that overlap, or do not fit their shapes")
        end = stop
    if end != data:
        raise ValueError("more or less data than the header describes")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that comes twice")
    return found


def _read_torch(file: Path) -> Any:
    check_torch_file(file)
    try:
        with torch.serialization.safe_globals(records(file)), open(file, "rb") as stream:
            # the stream, for torch goes by a path's ending, too
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} cannot be read safely: it holds more than tensors and plain values"
            f"{_unsafe_name(error)}; save the network's state_dict() instead"
        ) from error
    except Exception as error:
        raise InputError(
            f"{file} is not a readable torch checkpoint ({type(error).__name__}): truncated, or "
            "another kind of file"
        ) from error
    check_tensors(content, file)
    return content


def _unsafe_name(error: pickle.UnpicklingError) -> str:
    """The name that torch refused to import, out of its page of advice."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""


_READERS = {".pth": _read_torch, ".safetensors": _read_safetensors, ".pkl": _read_pickle}
