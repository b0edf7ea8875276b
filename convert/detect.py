"""The format of a checkpoint, and its backbone in torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from convert import naming
from convert.architecture import merge_split_statistics, unfold
from convert.foreign import Record
from convert.formats import FORMATS, OTHER, Format, option
from runtime.errors import InputError

TENSORS = (torch.Tensor, np.ndarray)
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
DEPTH = 3  # mappings in each other in which a state dict is looked for
PROBE = "layer1.0.conv1.weight"  # a backbone has it, by torchvision's names


@dataclass(frozen=True)
class Found:
    """The format of a file and the encoder taken.

    Attributes:
        format: the row of the table.
        branch: name of the encoder that is taken; "" where the format has only one.
        others: names of the encoders that the file holds besides.
        elsewhere: places of other ResNets in torchvision's names, of which the format knows nothing
            (an average of the weights, say), as ``--format other`` takes them.
        prefix: what the names of its tensors begin with.
    """

    format: Format
    branch: str
    others: tuple[str, ...]
    prefix: str
    elsewhere: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the format."""
        return self.format.name

    @property
    def taken(self) -> str:
        """The encoder taken: the name of its branch, or else its place in the file."""
        return self.branch or repr(self.format.branches[""])

    @property
    def not_taken(self) -> str:
        """The options that take the other encoders; "" where there are none."""
        options = [f"--branch {name}" for name in self.others]
        options += [f"--format other --branch {place}" for place in self.elsewhere]
        return ", ".join(options)


def detect(content: Any, source: str, name: str = "", branch: str = "") -> Found:
    """The first row of the table that the content of ``source`` matches.

    ``name`` forces a format, whatever the marks say; ``branch`` chooses among its encoders.
    Raises InputError where nothing matches, or the file has no such encoder.
    """
    if option(name) == OTHER.option:
        return _only_encoder(content, source, branch)
    known = [*dict.fromkeys(row.option for row in FORMATS), OTHER.option]
    rows = [row for row in FORMATS if option(name) == row.option] if name else FORMATS
    if not rows:
        raise InputError(f"--format {name} is not one of {', '.join(known)}")
    for row in rows:
        present = [b for b, place in row.branches.items() if _holds_backbone(content, place, row)]
        if name:
            chosen = branch or next(iter(row.branches))
            if chosen in present:
                return _found(content, row, chosen, present)
        elif (
            not row.forced
            and next(iter(row.branches)) in present
            and all(_marked(content, mark) for mark in row.marks)
        ):
            if branch and branch not in present:
                raise InputError(
                    f"{source} ({row.name}) has no encoder {branch!r}: --branch can be "
                    f"{' or '.join(b for b in present if b) or 'left out'}"
                )
            return _found(content, row, branch or present[0], present)
    _refuse_networks(content, source)
    example = ", ".join(_examples(content)) or "nothing"
    if name:
        raise InputError(f"{source} is not in the format {rows[0].name}; it holds {example} ...")
    places = ", ".join(repr(place) for place in _places(content))
    advice = f"--format other takes the ResNet at {places}" if places else f"it holds {example} ..."
    raise InputError(f"{source} has none of the known formats ({', '.join(known)}); {advice}")


def _refuse_networks(content: Any, source: str) -> None:
    for part in (content, *(content.values() if isinstance(content, Mapping) else ())):
        if isinstance(part, Record) and part.is_network:
            raise InputError(
                f"{source} holds a whole pickled network, which would have to be run: save its "
                "state_dict() instead"
            )


def _only_encoder(content: Any, source: str, branch: str) -> Found:
    """The one ResNet in torchvision's names in the file, wherever it is; or that at ``branch``."""
    places = _places(content)
    if len(places) != 1 and branch not in places:
        raise InputError(
            f"{source} holds {len(places)} ResNets in torchvision's names"
            + (f": give one of them as --branch: {', '.join(places)}" if places else "")
        )
    place = branch or places[0]
    return _found(content, replace(OTHER, branches={p: p for p in places}), place, places)


def _places(content: Any) -> list[str]:
    """Where the file holds a ResNet in torchvision's names."""
    return [
        where + name.removesuffix(PROBE)
        for where in _mappings(content, "", DEPTH, set())
        for name in _entries(content, where)[1].values()
        if name.endswith(PROBE)
    ]


def _mappings(content: Any, where: str, depth: int, seen: set[int]) -> Iterator[str]:
    """The place of every mapping in the file, once."""
    if isinstance(content, Mapping) and id(content) not in seen and depth:
        seen.add(id(content))
        yield where
        for key, value in content.items():
            if isinstance(key, str) and "/" not in key:
                yield from _mappings(value, f"{where}{key}/", depth - 1, seen)


def backbone_state(
    content: Mapping[str, Any], known: Found, source: str
) -> dict[str, torch.Tensor]:
    """The backbone's tensors under torchvision's names, without the head.

    Arrays of a ``.pkl`` become tensors, BN of split batches one BN, and BN that was folded into a
    scale and a shift gets the statistics that change nothing. Raises InputError where an entry of
    the backbone is no tensor, or two are for one place.
    """
    out = {}
    tensors, names = _entries(content, known.format.branches[known.branch])
    for name, short in names.items():
        new = known.format.naming(short)
        if new is None:
            continue
        value = tensors[name]
        if not isinstance(value, TENSORS):
            raise InputError(f"{source}: {name} is a {type(value).__name__}, not a tensor")
        if new in out:
            raise InputError(f"{source} has two tensors for {new}, one is {name}: which is meant?")
        out[new] = torch.as_tensor(value)
    if known.format.naming is naming.caffe2 and any(name.endswith("_bn_s") for name in names):
        out = unfold(out)
    return merge_split_statistics(out)


def head_tensors(content: Mapping[str, Any], known: Found) -> dict[str, torch.Tensor]:
    """What is beside the backbone below its prefix, by name without it: a detector drops it."""
    tensors, names = _entries(content, known.format.branches[known.branch])
    return {
        short: torch.as_tensor(tensors[name])
        for name, short in names.items()
        if known.format.naming(short) is None and isinstance(tensors[name], TENSORS)
    }


def all_tensors(content: Mapping[str, Any], known: Found) -> dict[str, torch.Tensor]:
    """All of the state dict that the backbone is in, by the file's own names."""
    tensors, _ = _entries(content, known.format.branches[known.branch])
    return {str(n): torch.as_tensor(v) for n, v in tensors.items() if isinstance(v, TENSORS)}


def _found(content: Any, row: Format, branch: str, present: list[str]) -> Found:
    place = row.branches[branch]
    _, names = _entries(content, place)
    name, short = next(iter(names.items()))
    prefix = name[: len(name) - len(short)]
    others = tuple(b for b in present if b != branch)
    return Found(row, branch, others, prefix, tuple(_elsewhere(content, row)))


def _elsewhere(content: Any, row: Format) -> Iterator[str]:
    """Places of other ResNets than the format's; the same one may stand twice in a file."""
    known = [_backbone(content, place, row.naming) for place in row.branches.values()]
    for place in _places(content):
        found = _backbone(content, place, naming.torchvision)
        if not any(_equal(found, other) for other in known):
            yield place


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    def same(x: Any, y: Any) -> bool:
        tensors = isinstance(x, TENSORS) and isinstance(y, TENSORS) and x.shape == y.shape
        return tensors and bool((torch.as_tensor(x) == torch.as_tensor(y)).all())

    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


def _entries(content: Any, place: str) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The state dict at ``place``, and its names with the prefix, each with what follows it."""
    *path, prefix = place.split("/")
    node = _node(content, path)
    names = [name for name in node if isinstance(name, str)]
    wrapped = ""
    while names and (
        more := next((w for w in WRAPPERS if all(n.startswith(wrapped + w) for n in names)), "")
    ):
        wrapped += more
    start = wrapped + prefix
    return node, {name: name[len(start) :] for name in names if name.startswith(start)}


def _holds_backbone(content: Any, place: str, row: Format) -> bool:
    return PROBE in _backbone(content, place, row.naming)


def _backbone(content: Any, place: str, names: naming.Naming) -> dict[str, Any]:
    """The entries at ``place`` by torchvision's names."""
    node, entries = _entries(content, place)
    found = ((names(short), node[name]) for name, short in entries.items())
    return {new: value for new, value in found if new is not None}


def _marked(content: Any, mark: str) -> bool:
    found = re.fullmatch(r"([^=~]+)([=~])(.*)", mark)
    if found is None:
        return bool(_entries(content, mark)[1])
    *path, key = found[1].split("/")
    node = _node(content, path)
    value = node.get(key)
    return value == found[3] if found[2] == "=" else isinstance(value, str) and found[3] in value


def _node(content: Any, path: list[str]) -> Mapping[str, Any]:
    """The entry of ``content`` that ``path`` leads to; empty where there is no such mapping."""
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def _examples(content: Any) -> list[str]:
    inner = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    return [str(name) for name in inner][:3] if isinstance(inner, Mapping) else []
