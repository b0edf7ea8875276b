"""Turn a source of images into WebDataset shards: in several processes, and on after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pretrain.sharding.content import Content, Options
from pretrain.sharding.workers import written
from pretrain.source import shard_index
from pretrain.source.images import ImageSource, NoClassError
from pretrain.source.open_source import open_source
from pretrain.source.shard_index import MEMBERS, UNFINISHED, Shard, ShardIndex
from pretrain.source.tar_index import TarIndex, scan_tar
from runtime.device import loader_workers
from runtime.errors import InputError
from runtime.files import atomic_write, remove_leftovers, sha256, write_text
from runtime.progress import Bar
from runtime.rundir import locked
from runtime.urls import shown
from runtime.wording import counted

RECIPE_CHANGES = (
    "smaller images change the recipe: a crop is cut from fewer pixels, and enlarged more often; "
    "say so with the results"
)


def make_shards(
    root: str, output: str, options: Options, skip: bool = False, workers: int = -1
) -> ShardIndex:
    """Write the images of ``root`` (as of DATA.ROOT) to shards in the folder ``output``.

    A folder where an earlier call with the same images and options was killed is finished: its
    shards that are whole stay. ``skip`` leaves unreadable images out and lists them; ``workers`` is
    the number of processes, -1: one a core, at most 16. Neither changes the bytes of a shard.

    InputError, before anything is written, for wrong options, other files in ``output``, or shards
    made of other images or with other options; later where an image cannot be read.
    """
    options.check()
    if workers < 1 and workers != -1:
        raise InputError(f"--workers {workers} must be at least one process")
    source = open_source(root, "SOURCE")
    if options.seed is not None:
        source.check_any_order("SOURCE", "name fewer shards, or keep their order: --no-shuffle")
    labels, classes, about_classes = _classes(source)
    content = Content(source, labels, options, skip)
    folder = _output(output, source)
    made_with = options.made_with(source.fingerprint())
    _refuse_others(folder, made_with)
    print(f"{shown(root)}: {counted(len(source.files), 'image')}, {about_classes}")
    source.describe()
    if options.short_side:
        print(f"--short-side {options.short_side}: {RECIPE_CHANGES}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make OUT_DIR {output!r}: {error.strerror}") from error
    with locked(folder), _one_line(folder):
        try:
            workers = loader_workers(workers)
            finished = _finish(folder, content, made_with, workers)
        finally:
            remove_leftovers(folder)  # of a worker that was killed
        members = _write_members(folder, finished, workers)
        index = ShardIndex(made_with, classes, finished, members)
        for name, images in index.flaws().items():
            _write_list(folder / name, images)
        index.write(folder)
        (folder / UNFINISHED).unlink()
    return index


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """A disk that is full or fails becomes an InputError, wherever that shows."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot finish the shards in {str(folder)!r}: {error.strerror or error}; what is "
            "finished stays: make room or repair the disk, and run it again"
        ) from error


def _classes(source: ImageSource) -> tuple[Sequence[int] | None, tuple[str, ...], str]:
    """Class index of each image, the classes' names, and what to say of them.

    None and no names unless all images have a class.
    """
    try:
        names = source.class_names()
    except NoClassError as error:
        return None, (), f"no classes, which only supervised training needs: {error.found}"
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    about = counted(len(classes), "class", "classes")
    return [number[name] for name in names], tuple(classes), about


def _output(output: str, source: ImageSource) -> Path:
    folder, root = Path(output), source.root.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"OUT_DIR {output!r} is a file: name a folder for the shards")
    if root.is_dir() and folder.resolve().is_relative_to(root):
        raise InputError(f"OUT_DIR {output!r} lies in the folder of the images: name one elsewhere")
    return folder


def _refuse_others(folder: Path, made_with: dict[str, Any]) -> None:
    """InputError where ``folder`` holds anything but shards ``made_with`` the same."""
    before = _made_with(folder)
    if before is None:
        others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        others = sorted(name for name in others if not name.startswith("."))
        if others:
            raise InputError(f"OUT_DIR {str(folder)!r} holds {others[0]!r}: name an empty folder")
        return
    for name, value in made_with.items():
        if before.get(name) != value:
            here = f"{before.get(name)!r}, not {value!r}"
            what = "other images" if name == "fingerprint" else f"{name} {here}"
            raise InputError(
                f"OUT_DIR {str(folder)!r} holds shards made with {what}: name another folder, or "
                "remove it"
            )


def _made_with(folder: Path) -> dict[str, Any] | None:
    index = ShardIndex.read(folder)
    if index is not None:
        return index.made_with
    lines = _lines(folder / UNFINISHED)
    return lines[0] if lines else None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The entries of the journal; what a kill has cut short is left out."""
    entries = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            entries.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(f"{str(path)!r} is damaged: remove its folder") from error
    return entries


def _finish(
    folder: Path, content: Content, made_with: dict[str, Any], workers: int
) -> tuple[Shard, ...]:
    """Make the shards that are missing or damaged; all of them, in order."""
    plan = content.shards()
    index = ShardIndex.read(folder)
    before = (
        index.shards if index else [Shard.from_dict(v) for v in _lines(folder / UNFINISHED)[1:]]
    )
    images = {name: len(indices) for name, indices in plan}
    done: dict[str, Shard] = {}
    with Bar("images", len(content.source.files)) as bar:
        for shard in before:
            if shard.is_in(folder):
                done[shard.name] = shard
                bar.show(sum(images[name] for name in done))
        if before:
            print(f"{folder}: {len(done)} of {len(plan)} shards are there and whole")
        ready = sum(images[name] for name in done)
        todo = [(folder / name, indices) for name, indices in plan if name not in done]
        with _journal(folder, made_with, done.values()) as journal:
            for shard in written(content, todo, workers, lambda count: bar.show(ready + count)):
                done[shard.name] = shard
                _note(journal, vars(shard))
    return tuple(done[name] for name, _ in plan)


@contextmanager
def _journal(folder: Path, made_with: dict[str, Any], done: Iterable[Shard]) -> Iterator[IO[bytes]]:
    """The file that says which shards are finished, as long as not all are.

    From here on the set counts as unfinished.
    """
    path = folder / UNFINISHED
    with atomic_write(path) as stream:
        for entry in (made_with, *map(vars, done)):
            _note(stream, entry)
    (folder / shard_index.NAME).unlink(missing_ok=True)
    with open(path, "ab") as stream:
        yield stream


def _note(journal: IO[bytes], entry: dict[str, Any]) -> None:
    journal.write(json.dumps(entry).encode() + b"\n")
    journal.flush()
    os.fsync(journal.fileno())


def _write_members(folder: Path, shards: Sequence[Shard], threads: int) -> str:
    """The file that says where the images lie in the shards; its SHA-256."""
    path = folder / MEMBERS
    with ThreadPoolExecutor(max(threads, 1)) as pool:  # most of it is reading and hashing
        indices = pool.map(lambda shard: scan_tar(folder / shard.name, digests=True), shards)
        TarIndex.joined(list(indices)).write(path)
    return sha256(path)


def _write_list(path: Path, images: Iterable[tuple[str, str]]) -> None:
    lines = [f"{name}\t{why}\n" for name, why in images]
    path.unlink(missing_ok=True)
    if lines:
        write_text(path, "".join(sorted(lines)))
