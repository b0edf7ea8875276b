"""A text file that lists images: a path a line, and after a tab its class if it has one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pretrain.source.images import ImageSource, NoClassError, file_size, of_the_storage, read_file
from runtime.errors import InputError


@dataclass(frozen=True)
class ImageList(ImageSource):
    """The images in the order of the lines; ``root`` is the list itself.

    ``files`` are the paths as written: absolute, or relative to the list's folder. ``given`` is the
    class of each line, "" without one; ``sizes`` are in bytes.
    """

    root: Path
    files: tuple[str, ...]
    given: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def scan(cls, path: Path) -> ImageList:
        """Read the list. InputError for a line whose file is not there or comes twice."""
        try:
            text = path.read_bytes().decode("utf-8", errors="surrogateescape")
        except OSError as error:
            raise of_the_storage(path, error) from error
        if "\0" in text:
            raise InputError(f"{str(path)!r} is no text: a list of images has a path a line")
        lines: dict[str, int] = {}
        given, sizes = [], []
        # a Windows editor begins with a byte order mark
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
            name, _, label = line.rstrip("\r").partition("\t")
            if not name:
                continue
            if name in lines:
                raise InputError(f"{str(path)!r}: line {number} repeats line {lines[name]}")
            lines[name] = number
            given.append(label)
            try:
                sizes.append(file_size(path.parent / name))
            except InputError as error:
                raise InputError(f"{str(path)!r}, line {number}: {error}") from error
        if not lines:
            raise InputError(f"{str(path)!r} lists no images")
        return cls(path, tuple(lines), tuple(given), tuple(sizes))

    def read(self, index: int) -> bytes:
        """The file of image ``index``. InputError where that fails."""
        return read_file(self.root.parent / self.files[index])

    def file_sizes(self) -> tuple[int, ...]:
        """Bytes of each file when the list was read."""
        return self.sizes

    def class_names(self) -> list[str]:
        """What the lines say after the tab."""
        if "" in self.given:
            name = self.files[self.given.index("")]
            where = f"{name!r} in {str(self.root)!r} has no class"
            raise NoClassError(where, "lines PATH, tab, CLASS")
        return list(self.given)

    def fingerprint(self) -> str:
        """SHA-256 over paths, sizes and classes, in the order of the lines."""
        digest = hashlib.sha256()
        for name, size, label in zip(self.files, self.sizes, self.given, strict=True):
            digest.update(os.fsencode(name) + f"\0{size}\0".encode() + os.fsencode(label) + b"\n")
        return digest.hexdigest()
