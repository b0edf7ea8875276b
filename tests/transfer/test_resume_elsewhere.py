"""A run continued by the other engine, by another number of processes, or not at all."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_resume_kill
import torch
import torch.distributed as dist
from test_resume_kill import ENGINES, finish, job

from convert.backbone_file import Backbone, read_backbone, write_backbone
from runtime.errors import InputError
from transfer.data.order import plain_batches, rank_stream, train_stream
from transfer.recipe.defaults import default_cfg
from transfer.run.finetune import finetune
from transfer.run.job import Job
from transfer.run.segments import check_processes, continued

world = test_resume_kill.world  # the fixture
SHORT = ["SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.STEPS", "(5,)"]
SHORT += ["TEST.EVAL_PERIOD", "0"]
SYNC = ["MODEL.RESNETS.NORM", "SyncBN", "MODEL.FPN.NORM", "SyncBN", "MODEL.BACKBONE.FREEZE_AT", "0"]


def back_to_the_middle(folder: Path) -> None:
    """As if the run had been ended after iteration 2."""
    for name in ("model_final.pth", "results.json"):
        (folder / name).unlink()
    (folder / "last_checkpoint").write_text("model_0000002.pth")


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ, tensors bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [where] * (set(a) != set(b)) + [
            found
            for key in set(a) & set(b)
            for found in differences(a[key], b[key], f"{where}/{key}")
        ]
    if isinstance(a, list | tuple):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, (x, y) in pairs for found in differences(x, y, f"{where}/{i}")]
    equal = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if equal else [f"{where}: {a!r:.50} {b!r:.50}"]


@pytest.mark.detectron2
def test_a_run_is_continued_by_the_other_engine(world: Path, tmp_path: Path) -> None:
    recipe, whole = str(world / "detectron2.yaml"), {}
    for engine in ("embedded", "detectron2"):
        work = replace(job(world, tmp_path / engine, engine), recipe=recipe, overrides=SHORT)
        whole[engine] = finetune(work)
    middle = [checkpoint(tmp_path / engine, "model_0000002.pth") for engine in whole]
    assert middle[0]["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 3
    assert differences(*middle) == []
    reference = checkpoint(tmp_path / "detectron2", "model_final.pth")
    for begun, other in (("embedded", "detectron2"), ("detectron2", "embedded")):
        back_to_the_middle(tmp_path / begun)
        work = replace(job(world, tmp_path / begun, other), recipe=recipe, overrides=SHORT)
        results = finetune(work)
        assert differences(checkpoint(tmp_path / begun, "model_final.pth"), reference) == []
        assert results["metrics"] == whole["detectron2"]["metrics"]
        assert [s["engine"] for s in results["segments"]] == [begun, other]
        line = f"engine: {begun!r} -> {other!r} from iteration 3 on"
        assert line in results["deviations"]


def one_rank(work: Job, rank: int, store: str) -> None:
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    finetune(work)
    dist.destroy_process_group()


def in_two_processes(work: Job, store: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=one_rank, args=(work, rank, str(store))) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_and_another_number_goes_on(
    world: Path, tmp_path: Path, engine: str
) -> None:
    """All images have one shape, so that the batches stay the same."""
    work = replace(job(world, tmp_path / "run", engine), overrides=[*SHORT, *SYNC])
    in_two_processes(work, tmp_path / "store")
    two = json.loads((tmp_path / "run" / "results.json").read_text())
    assert two["hardware"]["processes"] == 2
    evaluation = {"eval_only": True, "weights": str(tmp_path / "run/model_final.pth")}
    alone = finetune(replace(work, **evaluation))
    assert alone["metrics"] == two["metrics"]  # every process evaluated what was saved
    back_to_the_middle(tmp_path / "run")
    results = finetune(work)
    assert [s["processes"] for s in results["segments"]] == [2, 1]
    assert "processes: 2 -> 1 from iteration 3 on" in results["deviations"]


def test_a_global_batch_is_the_same_for_every_number_of_processes() -> None:
    def global_batches(world: int) -> list[list[tuple[int, int]]]:
        streams = [
            list(plain_batches(rank_stream_head(7, rank, world), 4 // world))
            for rank in range(world)
        ]
        return [
            [image for places in zip(*parts, strict=True) for image in places]
            for parts in zip(*streams, strict=True)
        ]

    def rank_stream_head(size: int, rank: int, world: int) -> list[tuple[int, int]]:
        stream = rank_stream(train_stream(size, 3), rank, world)
        return [next(stream) for _ in range(40 // world)]

    assert global_batches(1) == global_batches(2) == global_batches(4)


def test_grouping_by_shape_needs_the_same_number_of_processes() -> None:
    cfg, before = default_cfg(), continued([], 0, "embedded")
    before[0]["processes"] = 8
    wide, high = {"width": 4, "height": 3}, {"width": 3, "height": 4}
    with pytest.raises(InputError, match="begun with 8 processes, now there are 1"):
        check_processes(before, cfg, [wide, high])
    check_processes(before, cfg, [wide, wide])
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    check_processes(before, cfg, [wide, high])


def without_an_array(source: Path, target: Path) -> str:
    backbone = read_backbone(source)
    del backbone.arrays["res3.1.conv2.weight"]
    write_backbone(target, Backbone(backbone.arrays, backbone.conventions))
    return str(target)


REFUSED: dict[str, tuple[Callable[[Job, Path], Job], str]] = {
    "weights do not fit": (
        lambda work, folder: replace(
            work, weights=without_an_array(folder / "backbone.pkl", folder / "part.pkl")
        ),
        "does not fit the model",
    ),
    "no masks": (
        lambda work, folder: replace(work, overrides=["MODEL.MASK_ON", "True", *work.overrides]),
        "has no segmentation",
    ),
    "zero steps": (
        lambda work, folder: replace(work, overrides=["SOLVER.MAX_ITER", "0"]),
        "MAX_ITER 0",
    ),
    "a backbone to evaluate": (
        lambda work, folder: replace(work, eval_only=True, weights=str(folder / "backbone.pkl")),
        "backbone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_run_leaves_nothing(world: Path, tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    test_resume_kill.tiny.write_backbone(tmp_path / "backbone.pkl")
    work = replace(job(world, tmp_path / "run", "embedded"), resume=False)
    with pytest.raises(InputError, match=message):
        finetune(change(work, tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_unknown_origin_is_not_continued(world: Path, tmp_path: Path) -> None:
    work = replace(job(world, tmp_path / "run", "embedded"), overrides=["SOLVER.MAX_ITER", "1"])
    finish(work)
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(InputError, match=r"has a checkpoint but no run\.json"):
        finetune(work)
