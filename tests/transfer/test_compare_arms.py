from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import InputError
from transfer.compare.arms import Arm, parse_arms


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights=v2.pkl"  # only the first "=" separates
    path.write_bytes(b"weights")
    return path


def test_arms_keep_their_order_and_files(weights: Path):
    arms = parse_arms(["moco-v2.800_ep=" + str(weights), "random", f"supervised={weights}"])
    assert arms == (
        Arm("moco-v2.800_ep", weights),
        Arm("random", None),
        Arm("supervised", weights),
    )


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ([], "no arms"),
        (["moco"], "names no weights"),
        (["moco="], "names no weights"),
        (["random={file}"], "takes no file"),
        (["Random"], "takes no file"),
        (["moco={file}", "moco={file}"], "given twice"),
        (["moco={file}", "MoCo={file}"], "given twice"),
        (["moco={folder}/absent.pkl"], "does not exist"),
        (["moco={folder}"], "is a folder"),
        (["={file}"], "not usable"),
        (["..={file}"], "not usable"),
        (["a/b={file}"], "not usable"),
        (["-x={file}"], "not usable"),
        (["a|b={file}"], "not usable"),
        (["<b>={file}"], "not usable"),
        (["móco={file}"], "not usable"),
        (["moco\n={file}"], "not usable"),
        (["a" * 65 + "={file}"], "not usable"),
        (["plots={file}"], "not usable"),
    ],
)
def test_wrong_arms_are_refused(weights: Path, specs: list[str], reason: str):
    filled = [spec.format(file=weights, folder=weights.parent) for spec in specs]
    with pytest.raises(InputError, match=reason):
        parse_arms(filled)
