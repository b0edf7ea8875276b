"""A folder of images: flat or nested, any names, as it is on the disk."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from runtime.errors import InputError
from runtime.image_files import IMAGE_SUFFIXES, images_below


@dataclass(frozen=True)
class ImageFolder:
    """All images below ``root``, in the order of their relative names.

    ``files`` are paths relative to ``root``. The order does not depend on the file system, so that
    index i names the same image on every machine.
    """

    root: Path
    files: tuple[str, ...]

    @classmethod
    def scan(cls, root: str | os.PathLike[str], option: str = "DATA.ROOT") -> ImageFolder:
        """List the images below ``root`` (links followed). InputError without a folder or image."""
        if not str(root):
            raise InputError(f"{option} is not set: name a folder of images, {option} DIR")
        path = Path(root)
        if not path.is_dir():
            raise InputError(f"{option} {str(path)!r} is not a folder: name a folder of images")
        files = images_below(path)
        if not files:
            known = " ".join(IMAGE_SUFFIXES)
            raise InputError(f"{option} {str(path)!r} holds no images: looked for {known}")
        return cls(path, tuple(files))

    def classes(self) -> tuple[str, ...]:
        """Names of the sub-folders that hold the images, sorted: the labels of supervision.

        InputError where an image lies outside a sub-folder or there is only one.
        """
        loose = next((name for name in self.files if "/" not in name), None)
        if loose is not None:
            raise InputError(
                f"{str(self.root / loose)!r} lies in no class folder: supervised training needs "
                "DATA.ROOT/CLASS/image.jpg"
            )
        names = tuple(sorted({name.split("/", 1)[0] for name in self.files}))
        if len(names) < 2:
            raise InputError(f"{str(self.root)!r} holds one class folder, {names[0]!r}: need two")
        return names

    def labels(self) -> list[int]:
        """Class index of each file, in the order of :meth:`classes`."""
        index = {name: i for i, name in enumerate(self.classes())}
        return [index[name.split("/", 1)[0]] for name in self.files]

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the files: tells whether a data set has changed."""
        digest = hashlib.sha256()
        for name in self.files:
            digest.update(f"{name}\0{os.path.getsize(self.root / name)}\n".encode())
        return digest.hexdigest()

    def read(self, index: int) -> bytes:
        """The file of image ``index``."""
        return (self.root / self.files[index]).read_bytes()

    def load(self, index: int) -> Image.Image:
        """Decode image ``index`` to RGB, upright by its EXIF tag.

        InputError for a damaged file; nothing is replaced in silence.
        """
        path = self.root / self.files[index]
        try:
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"cannot read image {str(path)!r} ({reason}): repair it or move it away"
            ) from error
