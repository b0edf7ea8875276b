"""Read a checkpoint file safely, whatever toolkit wrote it. Nothing in a file is ever run."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from convert import safe_pickle
from convert.foreign import records
from runtime.errors import InputError

MAX_STRUCTURE = 64 << 20  # bytes of a torch file's own pickle: names and shapes, no weights


def read_checkpoint(path: str | Path) -> Any:
    """Content of ``path``: ``.pkl`` (NumPy), ``.safetensors`` or a torch file (any other name).

    Tensors come on the CPU. Raises InputError for a missing, damaged or unsafe file.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"no checkpoint at {str(file)!r}: name an existing file")
    if file.suffix == ".pkl":
        return safe_pickle.load(file.read_bytes(), str(file))
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    return _read_torch(file)


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{file} is not a readable safetensors file: {error}") from error


def _read_torch(file: Path) -> Any:
    if zipfile.is_zipfile(file):
        _check_zip(file)
    try:
        with torch.serialization.safe_globals(records(file)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} cannot be read safely: it holds more than tensors and plain values"
            f"{_unsafe_name(error)}"
        ) from error
    except Exception as error:
        raise InputError(
            f"{file} is not a readable torch checkpoint ({type(error).__name__}): truncated, or "
            "another kind of file"
        ) from error


def _unsafe_name(error: pickle.UnpicklingError) -> str:
    """The name that torch refused to import, out of its page of advice."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""


def _check_zip(file: Path) -> None:
    """What torch does not check: CRC of every member, and sizes that a small file can claim."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise InputError(f"{file} has compressed members: not written by torch.save")
            if sum(member.file_size for member in members) > file.stat().st_size:
                raise InputError(f"{file} claims to be larger than it is: damaged or crafted")
            structure = [m.file_size for m in members if m.filename.endswith("data.pkl")]
            if max(structure, default=0) > MAX_STRUCTURE:
                raise InputError(f"{file} has a data.pkl above 64 MiB: not a checkpoint")
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise InputError(f"{file} is a damaged torch file: {error}") from error
    if damaged is not None:
        raise InputError(f"{file} is damaged: checksum of {damaged!r} does not match")
