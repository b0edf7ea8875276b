"""What ``tools/convert_to_d2.py`` does with its options, and the lines that it prints."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from convert.formats import FORMATS, OTHER
from convert.inspection import describe, inspect
from convert.output import writing
from convert.to_detectron2 import Converted, convert_file
from runtime.errors import EXIT_WRONG_INPUT, InputError, exit_code


def run(args: argparse.Namespace) -> None:
    """Inspect, or convert one or many; InputError where files and options do not fit."""
    if args.inspect:
        _each(args.files, lambda file: _show(inspect(file, **_choice(args)), args.json))
    elif args.out_dir:
        targets = {file: Path(args.out_dir) / f"{_name_of(file)}.pkl" for file in args.files}
        _check_targets(targets)
        with writing(args.out_dir):
            Path(args.out_dir).mkdir(parents=True, exist_ok=True)
        _each(args.files, lambda file: _one_line(file, targets[file], args))
    else:
        if len(args.files) != 2:
            raise InputError("give a checkpoint and a file to write, or several and --out-dir DIR")
        _report(args.files[0], args.files[1], args)


def _each(files: list[str], work: Callable[[str], None]) -> None:
    """Do all of them; one bad file does not stop the others, but decides the exit code."""
    if not files:
        raise InputError("name at least one checkpoint")
    codes = [exit_code(partial(work, file)) for file in files]
    if failed := len(codes) - codes.count(0):
        if len(files) > 1:
            print(f"{failed} of {len(files)} files failed", file=sys.stderr)
        sys.exit(EXIT_WRONG_INPUT)


def _choice(args: argparse.Namespace) -> dict[str, str]:
    return {"name": args.format, "branch": args.branch}


def _name_of(file: str) -> str:
    """``moco_v2_800ep`` of ``moco_v2_800ep.pth.tar``; other dots stay."""
    name = Path(file).name
    for suffix in (".tar", ".pth", ".pt", ".ckpt", ".pkl", ".safetensors", ".bin"):
        name = name.removesuffix(suffix)
    return name


def _check_targets(targets: dict[str, Path]) -> None:
    """Two inputs of one name would overwrite each other; an input must never be overwritten."""
    for target, count in Counter(targets.values()).items():
        if count > 1:
            same = [file for file, to in targets.items() if to == target]
            raise InputError(f"{' and '.join(same)} would both become {target}")
    for file, target in targets.items():
        if Path(file).resolve() == target.resolve():
            raise InputError(f"{file} would be overwritten: name another --out-dir")


def _one_line(file: str, target: Path, args: argparse.Namespace) -> None:
    converted = convert_file(file, target, args.allow_missing, args.detectron2, **_choice(args))
    if args.json:
        print(json.dumps(_summary(file, target, converted)))
    else:
        print(f"{_headline(file, converted)} -> {target} ({_outcome(converted)})", flush=True)


def _report(file: str, target: str, args: argparse.Namespace) -> None:
    converted = convert_file(file, target, args.allow_missing, args.detectron2, **_choice(args))
    if args.json:
        print(json.dumps(_summary(file, target, converted), indent=1))
        return
    print(_headline(file, converted))
    for stage, count in converted.stage_counts().items():
        print(f"  {stage:5s} {count:4d} tensors")
    head = converted.head
    print(
        f"  head  {len(head):4d} tensors not taken over" + (f" ({', '.join(head)})" if head else "")
    )
    for key, value in converted.backbone.conventions.detectron2_keys().items():
        print(f"  {key}: {value}")
    if assumed := converted.backbone.conventions.assumed:
        print(f"  assumed, because the file does not say: {assumed}")
    if seen := converted.backbone.seen_images:
        print(f"  remembers {len(seen.digests)} of {seen.total} pretraining images")
    for name, why in converted.backbone.incomplete.items():
        print(f"  {why}: {name}")
    print(f"wrote {target}: {len(converted.backbone.arrays)} tensors, {_outcome(converted)}")
    print(f"wrote {Path(target).with_suffix('.yaml')}: what they need of Detectron2, for _BASE_")


def _headline(file: str, converted: Converted) -> str:
    conventions = converted.backbone.conventions
    found = converted.format
    branch = f", taking {found.taken} (not taken: {found.not_taken})" if found.not_taken else ""
    detector = " OF A TRAINED DETECTOR" if conventions.detector else ""
    return f"{file}: {conventions.source_format}{branch}, {converted.architecture.name}{detector}"


def _outcome(converted: Converted) -> str:
    verification, incomplete = converted.verification, len(converted.backbone.incomplete)
    found = f"{incomplete} MISSING OR UNTRAINED" if incomplete else "all found"
    by = " and Detectron2's backbone" if verification.detectron2 else ""
    stages = verification.differences
    if not stages:
        return f"{found}; NO features could be compared"
    first, last = next(iter(stages)), list(stages)[-1]
    return f"{found}; {first}-{last} features{by} within {verification.largest:.1e} of the source's"


def _summary(file: str, target: str | Path, converted: Converted) -> dict[str, Any]:
    backbone = converted.backbone
    return {
        "file": file,
        "written": str(target),
        "format": backbone.conventions.source_format,
        "branch": backbone.conventions.branch,
        "not_taken": converted.format.not_taken,
        "architecture": converted.architecture.name,
        "tensors": len(backbone.arrays),
        "incomplete": dict(backbone.incomplete),
        "verification": converted.verification.to_dict(),
        "conventions": backbone.conventions.to_dict(),
    }


def _show(found: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(found) if as_json else describe(found), flush=True)


def formats() -> str:
    """The values of ``--format``, for the help."""
    names = ", ".join(dict.fromkeys(row.option for row in (*FORMATS, OTHER)))
    return textwrap.fill(
        names, 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )
