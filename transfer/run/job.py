"""What the user asked of one fine-tuning run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

RANDOM = "random"


@dataclass(frozen=True)
class Options:
    """Choices beyond Detectron2's keys.

    The recipe hash has those that decide the result, the batch by the keys that it changes.

    Attributes:
        batch: global batch that the whole schedule is scaled to; None for the recipe's.
        scale_to_gpus: scale batch and schedule to the number of processes.
        allow_deviation: run although only a part of the schedule was scaled.
        accumulate: parts that each process's batch is computed in, one after the other.
        amp_dtype: precision under SOLVER.AMP.ENABLED, "float16" or "bfloat16"; "auto" is float16
            on a GPU, as in Detectron2, and bfloat16 on a CPU.
        voc_metric: AP of VOC layouts: "11-point", "area", or "auto" as Detectron2 chooses.
    """

    batch: int | None = None
    scale_to_gpus: bool = False
    allow_deviation: bool = False
    accumulate: int = 1
    amp_dtype: str = "auto"
    voc_metric: str = "auto"


@dataclass(frozen=True)
class Job:
    """What the user asked for.

    Attributes:
        recipe: YAML file.
        weights: ``backbone.pkl``, or for evaluation ``model_final.pth``; "random" for none.
        overrides: KEY VALUE pairs.
        output: run folder; None for the recipe's OUTPUT_DIR.
        arm: name in a comparison.
        visualize: test images to draw after the evaluation, ground truth beside detections.
    """

    recipe: str
    weights: str
    overrides: Sequence[str] = ()
    train_data: Sequence[str] = ()
    test_data: Sequence[str] = ()
    engine: str = "auto"
    seed: int | None = None
    output: str | None = None
    resume: bool = False
    eval_only: bool = False
    arm: str | None = None
    visualize: int = 0
    options: Options = field(default_factory=Options)
