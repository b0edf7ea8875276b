"""What a source of images is, and the plainest one: a folder, flat or nested, any names."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from pretrain.source.decode import MAX_BYTES, decode, decode_pixels, printable, reason
from runtime.errors import InputError
from runtime.image_files import IMAGE_SUFFIXES, OTHER_SUFFIXES, images_below

log = logging.getLogger("moco")

Decoded = TypeVar("Decoded")


class UnreadableImageError(InputError):
    """The bytes of one image are damaged. ``name`` and ``reason`` say which and how."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read image {name!r} ({reason}): repair it or move it away")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)


class NoClassError(InputError):
    """An image has no class. ``found`` says which one, ``needed`` how it would have one."""

    def __init__(self, found: str, needed: str) -> None:
        super().__init__(f"{found}: labels need {needed}")
        self.found = found


class GoneError(InputError):
    """A file is not there, or no longer whole."""


class ImageSource(ABC):
    """N images, each read by its index in any order.

    Attributes:
        root: where they lie.
        files: name of each image. Index i names the same image on every machine.
    """

    root: Path
    files: Sequence[str]

    @property
    def place(self) -> str:
        """Where the images lie, for messages."""
        return str(self.root)

    def name_of(self, index: int) -> str:
        """Image ``index`` with its place, for messages."""
        return str(self.root / self.files[index])

    def at_hand(self) -> int:
        """How many images, from the first on, can be read in any order, again and again."""
        return len(self.files)

    def check_any_order(self, what: str, remedy: str = "") -> None:  # noqa: B027
        """InputError, with the ``remedy``, where ``what`` cannot read them in any order."""

    def describe(self) -> None:  # noqa: B027
        """Say in the log what a user may want to know of where they come from."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The file of image ``index``. InputError where the storage fails: the run must stop."""

    @abstractmethod
    def file_sizes(self) -> Sequence[int]:
        """Bytes of each image's file. InputError where one is not there."""

    @abstractmethod
    def class_names(self) -> list[str]:
        """Class of each image. NoClassError where one has none."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over names, sizes and given labels: tells whether a data set has changed."""

    def state(self) -> str:
        """A digest of what may change on a server and must be the same for all processes."""
        return ""

    def sha256(self, index: int) -> bytes:
        """SHA-256 (32 bytes) of the file that image ``index`` was made from: its own, as a rule."""
        return hashlib.sha256(self.read(index)).digest()

    def load(self, index: int) -> Image.Image:
        """Decode image ``index`` to RGB, upright by its Exif tag.

        UnreadableImageError where it is damaged; nothing is replaced in silence.
        """
        return self._decoded(index, decode)

    def pixels(self, index: int, damage: list[str] | None = None) -> np.ndarray:
        """As :meth:`load`: uint8 H x W x 3, RGB. ``damage`` as of :func:`decode_pixels`."""
        return self._decoded(index, partial(decode_pixels, damage=damage))

    def _decoded(self, index: int, decoder: Callable[[bytes], Decoded]) -> Decoded:
        content = self.read(index)
        try:
            return decoder(content)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise many types on damaged files
            raise UnreadableImageError(self.name_of(index), reason(error)) from error

    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted. InputError where an image has none or there is only one."""
        names = tuple(sorted(set(self.class_names())))
        if len(names) < 2:
            raise InputError(f"{self.place!r} holds one class, {names[0]!r}: need two")
        return names

    def labels(self) -> list[int]:
        """Class index of each image, in the order of :meth:`classes`."""
        index = {name: i for i, name in enumerate(self.classes())}
        return [index[name] for name in self.class_names()]


@dataclass(frozen=True)
class ImageFolder(ImageSource):
    """All images below ``root``, in the order of their relative names."""

    root: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # images of formats that are not read

    @classmethod
    def scan(cls, root: str | os.PathLike[str], option: str = "DATA.ROOT") -> ImageFolder:
        """List the images below ``root`` (links followed). InputError without a folder or image."""
        if not str(root):
            raise InputError(f"{option} is not set: name a folder of images, {option} DIR")
        path = Path(root)
        if not path.is_dir():
            raise InputError(f"{option} {str(path)!r} is not a folder: name a folder of images")
        files, others = list[str](), list[str]()
        for name in images_below(path, IMAGE_SUFFIXES + OTHER_SUFFIXES):
            (files if name.lower().endswith(IMAGE_SUFFIXES) else others).append(name)
        if not files:
            known = " ".join(IMAGE_SUFFIXES)
            shards = images_below(path, (".tar",))
            hint = f"; shards lie in {str((path / shards[0]).parent)!r}: name it" if shards else ""
            raise InputError(f"{option} {str(path)!r} holds no images: looked for {known}{hint}")
        return cls(path, tuple(files), tuple(others))

    def describe(self) -> None:
        """Tell of images that are left out."""
        if self.left_out:
            log.warning(
                "%d image(s) of %s are left out, of formats that are not read, %s for one: convert "
                "them to %s",
                *(len(self.left_out), self.place, printable(self.left_out[0])),
                " ".join(IMAGE_SUFFIXES),
            )

    def read(self, index: int) -> bytes:
        """The file of image ``index``. InputError where that fails."""
        return read_file(self.root / self.files[index])

    def file_sizes(self) -> list[int]:
        """Bytes of each file. InputError where one is not there."""
        return [file_size(self.root / name) for name in self.files]

    def class_names(self) -> list[str]:
        """Names of the top sub-folders that hold the images."""
        loose = next((name for name in self.files if "/" not in name), None)
        if loose is not None:
            where = f"{str(self.root / loose)!r} lies in no class folder"
            raise NoClassError(where, "FOLDER/CLASS/image.jpg")
        return [name.split("/", 1)[0] for name in self.files]

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the files."""
        digest = hashlib.sha256()
        for name, size in zip(self.files, self.file_sizes(), strict=True):
            digest.update(os.fsencode(name) + f"\0{size}\n".encode())
        return digest.hexdigest()


def read_file(path: Path) -> bytes:
    """The content of a file. InputError where the storage fails.

    Of a file that is far too large, just enough for :func:`pretrain.source.decode.decode` to
    refuse it.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            return stream.read(min(os.fstat(stream.fileno()).st_size, MAX_BYTES + 1))
    except OSError as error:
        raise of_the_storage(path, error) from error


def file_size(path: Path) -> int:
    """Bytes in a file. InputError where it is not there, or a folder, pipe or device."""
    try:
        status = path.stat()
    except OSError as error:
        raise of_the_storage(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{str(path)!r} is no file")
    return status.st_size


def of_the_storage(path: Path, error: OSError) -> InputError:
    """It is not the image's fault and may work another time: to go on would not be repeatable."""
    kind = GoneError if isinstance(error, FileNotFoundError) else InputError
    return kind(f"cannot read {str(path)!r}: {error.strerror}")
