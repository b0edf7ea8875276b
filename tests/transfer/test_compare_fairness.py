from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from compare_synthetic import fair_results

from transfer.compare.fairness import check, mismatches

Run = dict[str, Any]
Plant = Callable[[dict[tuple[str, int], Run]], object]


def of_arm(runs: dict[tuple[str, int], Run], arm: str) -> list[Run]:
    return [run for (name, _), run in runs.items() if name == arm]


def in_module(name: str, **changes: int) -> Plant:
    """Change an entry of the load report of every moco run."""

    def plant(runs: dict[tuple[str, int], Run]) -> None:
        for run in of_arm(runs, "moco"):
            for entry in run["load_report"]["modules"]:
                if entry["module"] == name:
                    entry.update(changes)

    return plant


def every(arm: str, change: Callable[[Run], object]) -> Plant:
    return lambda runs: [change(run) for run in of_arm(runs, arm)]


SPOILING: dict[str, tuple[Plant, str]] = {
    "engines mixed": (
        lambda runs: runs["moco", 2].update(engine="detectron2"),
        "The engine differs: embedded (random, supervised, moco seed 1+3); "
        "detectron2 (moco seed 2).",
    ),
    "recipes mixed": (
        every("moco", lambda run: run.update(recipe_hash="beef" * 16)),
        "The recipe hash differs: 5ec1be5ec1be (random, supervised); beefbeefbeef (moco).",
    ),
    "precision mixed": (
        every("moco", lambda run: run.update(precision="float16")),
        "The precision differs: float32 (random, supervised); float16 (moco).",
    ),
    "evaluation mixed": (
        every("moco", lambda run: run.update(metric="COCO AP")),
        "The meaning of the metric differs: VOC AP (11-point), mean over IoU 0.50:0.95 "
        "(random, supervised); COCO AP (moco).",
    ),
    "test set": (
        every("moco", lambda run: run["dataset"].update(test=["voc_2012_test"])),
        'The data set (test) differs: ["voc_2007_test"] (random, supervised); '
        '["voc_2012_test"] (moco).',
    ),
    "fewer training images": (
        every("moco", lambda run: run["dataset"].update(train_images=5011)),
        "The data set (train_images) differs: 16551 (random, supervised); 5011 (moco).",
    ),
    "half schedule": (
        every("random", lambda run: run["schedule"].update(iterations=12000)),
        "The schedule (iterations) differs: 12000 (random); 24000 (supervised, moco).",
    ),
    "pretrained on test": (
        every("moco", lambda run: run.update(test_images_pretrained_on=12)),
        "Arm moco was pretrained on test images: at least 12 of 4952.",
    ),
    "trained on test": (
        lambda runs: [run["dataset"]["train"].append("voc_2007_test") for run in runs.values()],
        "Test images were trained on: voc_2007_test is in both sets.",
    ),
    "weights changed between seeds": (
        lambda runs: runs["moco", 3]["weights"].update(sha256="12" * 32),
        "The weights file (sha256) differs: 3ad7555734cf (moco seed 1+2); "
        "121212121212 (moco seed 3).",
    ),
    "trained detector": (
        in_module("roi_heads.box_predictor", loaded=4, initialised=0),
        "Arm moco started from a trained detector: its weights file also filled "
        "roi_heads.box_predictor.",
    ),
    "partly initialised": (
        in_module("backbone.res3", loaded=70, initialised=8),
        "Arm moco is partly random: its weights file did not fill backbone.res3 completely.",
    ),
    "nothing loaded into res5": (
        in_module("roi_heads.res5", loaded=0, initialised=60),
        "Arm moco is partly random: its weights file did not fill roi_heads.res5 completely.",
    ),
    "load report changed between seeds": (
        lambda runs: runs["moco", 2]["load_report"].update(loaded=7),
        "The load report differs: moco seed 1+3; moco seed 2.",
    ),
}
LIMITING: dict[str, tuple[Plant, str]] = {
    "torch versions": (
        lambda runs: runs["random", 1]["versions"].update(torch="2.10.0"),
        "The torch version differs: 2.10.0 (random seed 1); "
        "2.14.1 (supervised, moco, random seed 2+3).",
    ),
    "hardware": (
        every("moco", lambda run: run["hardware"].update(gpus=1)),
        "The hardware (gpus) differs: 8 (random, supervised); 1 (moco).",
    ),
    "channel order": (
        every("supervised", lambda run: run["weights"]["conventions"].update(channel_order="BGR")),
        "The convention channel_order differs: BGR (supervised); RGB (moco), "
        "so the arms differ in more than their pretraining.",
    ),
    "stride placement": (
        every("supervised", lambda run: run["weights"]["conventions"].update(stride_in_1x1=True)),
        "The convention stride_in_1x1 differs: true (supervised); false (moco), "
        "so the arms differ in more than their pretraining.",
    ),
    "no conventions": (
        every("moco", lambda run: run["weights"].update(conventions=None)),
        "Arm moco has weights that say nothing about their conventions "
        "(channel order, mean and std, stride placement).",
    ),
    "number of seeds": (
        lambda runs: runs.pop(("moco", 3)),
        "The arms have different numbers of seeds (random: 3, supervised: 3, moco: 2).",
    ),
    "other seeds": (
        lambda runs: runs["moco", 3].update(seed=9),
        "The arms have different seeds (random: [1, 2, 3], supervised: [1, 2, 3], "
        "moco: [1, 2, 9]): only common seeds can be paired.",
    ),
    "deviations of all": (
        lambda runs: [
            run.update(deviations=["SOLVER.MAX_ITER: 24000 -> 100"]) for run in runs.values()
        ],
        "All runs deviate from the recipe: SOLVER.MAX_ITER: 24000 -> 100.",
    ),
    "deviation of one": (
        lambda runs: runs["moco", 1].update(deviations=["SOLVER.BASE_LR: 0.02 -> 0.01"]),
        "Only moco seed 1 deviates from the recipe in this: SOLVER.BASE_LR: 0.02 -> 0.01.",
    ),
    "no load report": (
        every("moco", lambda run: run.pop("load_report")),
        "No load report for moco: nothing shows that the weights were loaded.",
    ),
    "metric missing": (
        lambda runs: runs["moco", 1]["metrics"]["bbox"].update(AP75=math.nan),
        "Arm moco has no bbox AP75 in 1 of 3 runs.",
    ),
    "seed not applied": (
        lambda runs: runs["moco", 2].update(metrics=runs["moco", 1]["metrics"]),
        "Arm moco has the same metrics, digit for digit, under different seeds: "
        "the seed may not have been applied.",
    ),
    "frozen at random": (
        every(
            "random",
            lambda run: run["load_report"]["modules"][0].update(trainable=0, frozen=3),
        ),
        "Arm random never trains backbone.stem, frozen at random initial values "
        "(MODEL.BACKBONE.FREEZE_AT).",
    ),
}


def planted(plant: Plant) -> list[Run]:
    runs = {(run["arm"], run["seed"]): run for run in fair_results()}
    plant(runs)
    return list(runs.values())


def test_a_fair_comparison_has_no_notes():
    assert check(fair_results()) == []


@pytest.mark.parametrize("trap", SPOILING)
def test_trap_that_spoils_the_comparison_is_caught(trap: str):
    plant, sentence = SPOILING[trap]
    assert mismatches(planted(plant)) == [sentence]
    assert check(planted(plant)) == [sentence]


@pytest.mark.parametrize("trap", LIMITING)
def test_trap_that_limits_the_conclusion_is_caught(trap: str):
    plant, sentence = LIMITING[trap]
    assert mismatches(planted(plant)) == []
    assert check(planted(plant)) == [sentence]


def test_two_arms_from_one_file_are_caught():
    runs = fair_results()
    for run in runs:
        if run["weights"] is not None:
            run["weights"]["sha256"] = "ab" * 32
    assert check(runs) == [
        "Arms supervised, moco started from the same weights file: they are one arm."
    ]


def test_one_seed_only_is_caught():
    runs = [run for run in fair_results() if run["seed"] == 1]
    assert check(runs) == [
        "One seed only (random, supervised, moco): the spread between seeds is unknown; "
        "on VOC it is about 0.2 AP50, 0.2 AP and 0.4 AP75 (one standard deviation)."
    ]


def test_norm_added_by_the_recipe_and_the_fpn_are_no_traps():
    """``Res5ROIHeadsExtraNorm`` and the FPN's own layers start at random in every arm."""
    runs = fair_results()
    for run in runs:
        fpn = {"module": "backbone.fpn_lateral2", "loaded": 0, "initialised": 2}
        run["load_report"]["modules"].append({**fpn, "norm": "", "trainable": 2, "frozen": 0})
    assert check(runs) == []


def test_continued_run_without_load_report_is_no_difference_between_seeds():
    runs = fair_results()
    runs[-1]["load_report"] = None
    assert mismatches(runs) == []
    assert check(runs) == [
        "No load report for moco seed 3: nothing shows that the weights were loaded."
    ]


def test_conventions_of_the_random_arm_are_compared_too():
    runs = fair_results()
    for run in runs:
        run["conventions"] = {"channel_order": "BGR" if run["arm"] == "random" else "RGB"}
    assert [note for note in check(runs) if "convention channel_order" in note]


def test_frozen_stages_that_were_loaded_are_no_trap():
    runs = [run for run in fair_results() if run["arm"] != "random"]
    for run in runs:
        run["load_report"]["modules"][0].update(trainable=0, frozen=3)
    assert check(runs) == []


def test_where_weights_come_from_is_no_convention():
    runs = fair_results()
    for run in runs:
        if run["arm"] == "supervised":
            run["weights"]["conventions"].update(
                source_format="torchvision",
                branch="",
                source_sha256="cd" * 32,
                pretraining={"epochs": 90},
            )
    assert check(runs) == []
