"""The same 24 images of two classes as a folder, a list and shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from runtime.image_files import images_below

KINDS = ("folder", "list", "shards")


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def as_source(kind: str, folder: Path) -> Path:
    """What DATA.ROOT has to be; written beside ``folder``, images in the order of their names."""
    names = images_below(folder)
    if kind == "list":
        path = folder.parent / "images.txt"
        path.write_text("".join(f"{folder.name}/{n}\t{n.split('/')[0]}\n" for n in names))
        return path
    if kind == "shards":
        path = folder.parent / "shards"
        path.mkdir()
        for shard in range(3):
            members = []
            for name in names[shard * 8 : shard * 8 + 8]:
                key = name.replace("/", "-").removesuffix(".jpg")
                members.append((f"{key}.jpg", (folder / name).read_bytes()))
                members.append((f"{key}.cls", str("ab".index(name[0])).encode()))
            write_tar(path / f"{shard:03d}.tar", members)
        return path
    return folder
