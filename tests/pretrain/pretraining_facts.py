"""What the sources state of each pretraining recipe, in one place.

The page docs/pretraining_recipes.md is made from it by ``make_pretraining_doc.py``.
"""

from __future__ import annotations

from facts import Fact, facts

V1 = "MoCo v1 paper"
V2 = "MoCo v2 paper"
CODE = "official main_moco.py (3b42c2a)"
DEMO = "the authors' CIFAR-10 demo"
OURS = "our choice"


MOCO, SMALL = "moco ablation", "moco_v2_R50_small moco_v2_R18"
BANK, END_TO_END = "ablation_memory_bank", "ablation_end_to_end"
IMAGENET = "moco_v1_R50_200ep moco_v2_R50_200ep moco_v2_R50_800ep"
FACTS: list[Fact] = [
    *facts(
        MOCO,
        f"{V1}, section 3.3; {CODE} --moco-dim",
        MODEL__DIM=128,
    ),
    *facts(
        MOCO,
        f"{V1}, section 4, of all parameters; {CODE} --momentum, --wd",
        SOLVER__MOMENTUM=0.9,
        SOLVER__WEIGHT_DECAY=0.0001,
    ),
    *facts(
        f"{IMAGENET} moco_v1_R50_IG1B",
        f"{V1}, sections 3.3 and 4.1 (table 1); {CODE} --moco-k, --moco-m",
        MODEL__QUEUE_SIZE=65536,
        MODEL__MOMENTUM=0.999,
    ),
    *facts(
        f"{IMAGENET} moco_v1_R50_IG1B ablation",
        f"{V1}, section 4.1 (table 1 and figure 3); {CODE} --arch",
        MODEL__ARCH="resnet50",
    ),
    *facts(
        f"{IMAGENET} {BANK}",
        f"{V1}, section 4; {CODE} --batch-size, --lr",
        SOLVER__BATCH_SIZE=256,
        SOLVER__BASE_LR=0.03,
    ),
    *facts(
        f"{IMAGENET} {BANK}",
        f"{V1}, section 4: 256 images on 8 GPUs, BN on each GPU (section 3.3)",
        MODEL__BN_GROUP_SIZE=32,
    ),
    *facts(
        MOCO,
        f"{V1}, section 3.3 (random flip, greyscale); {CODE}: the numbers, in no paper",
        VIEWS__CROP_SCALE=[0.2, 1.0],
        VIEWS__GRAYSCALE_PROB=0.2,
        VIEWS__FLIP_PROB=0.5,
    ),
    *facts(
        f"{IMAGENET} moco_v1_R50_IG1B moco_v2_R50_small moco_v2_R18_small ablation",
        f"{V1}, section 3.3: 224 pixels",
        VIEWS__CROP_SIZE=224,
    ),
    *facts(
        "moco_v1 ablation",
        f"{V1}, section 3.3; {CODE} --moco-t, and without --mlp",
        MODEL__TEMPERATURE=0.07,
        MODEL__MLP=False,
    ),
    *facts(
        "moco_v1 ablation",
        f"{CODE} without --aug-plus",
        VIEWS__GRAYSCALE_FIRST=True,
        VIEWS__JITTER=[0.4, 0.4, 0.4, 0.4],
        VIEWS__JITTER_PROB=1.0,
        VIEWS__BLUR_PROB=0.0,
    ),
    *facts(
        "moco_v1_R50_200ep ablation",
        f"{V1}, section 4; {CODE} --schedule, --epochs",
        SOLVER__SCHEDULE="multistep",
        SOLVER__MILESTONES=[120, 160],
        SOLVER__GAMMA=0.1,
        SOLVER__EPOCHS=200,
    ),
    *facts(
        "moco_v1_R50_IG1B",
        f"{V1}, section 4: 1.25M iterations, rate 0.12 times 0.9 after every 62.5k, batch 1024",
        SOLVER__BATCH_SIZE=1024,
        SOLVER__BASE_LR=0.12,
        SOLVER__SCHEDULE="exponential",
        SOLVER__GAMMA=0.9,
        SOLVER__DECAY_PERIOD=62500,
        SOLVER__MAX_STEPS=1250000,
    ),
    *facts(
        "moco_v1_R50_IG1B",
        f"{V1}, section 4: 1024 images on 64 GPUs",
        MODEL__BN_GROUP_SIZE=16,
    ),
    *facts(
        "moco_v1_R50_IG1B",
        f"{OURS}: an epoch is 918,000 steps, too many to lose",
        CHECKPOINT_STEPS=5000,
    ),
    *facts(
        BANK,
        f"{V1}, section 4.1 (figure 3): its largest sample",
        MODEL__DICTIONARY="memory_bank",
        MODEL__QUEUE_SIZE=65536,
    ),
    *facts(
        BANK,
        "Wu et al. (CVPR 2018), of an image's entry; the MoCo paper gives none",
        MODEL__MOMENTUM=0.5,
    ),
    *facts(
        END_TO_END,
        f"{V1}, section 4.1 (figure 3): its largest batch, the rate scaled linearly",
        MODEL__DICTIONARY="end_to_end",
        MODEL__QUEUE_SIZE=1024,
        SOLVER__BATCH_SIZE=1024,
        SOLVER__BASE_LR=0.12,
    ),
    *facts(
        END_TO_END,
        f"{V1}, section 4.1: 1024 images on 8 GPUs",
        MODEL__BN_GROUP_SIZE=128,
    ),
    *facts(
        "moco_v2",
        f"{V2}, section 3; {CODE} --mlp --moco-t 0.2 --cos",
        MODEL__MLP=True,
        MODEL__TEMPERATURE=0.2,
        SOLVER__SCHEDULE="cosine",
    ),
    *facts(
        "moco_v2",
        f"{V2}, section 3 (blur); {CODE} --aug-plus",
        VIEWS__JITTER=[0.4, 0.4, 0.4, 0.1],
        VIEWS__JITTER_PROB=0.8,
        VIEWS__GRAYSCALE_FIRST=False,
        VIEWS__BLUR_PROB=0.5,
        VIEWS__BLUR_SIGMA=[0.1, 2.0],
    ),
    *facts("moco_v2_R50_200ep", f"{V2}, table 1", SOLVER__EPOCHS=200),
    *facts("moco_v2_R50_800ep", f"{V2}, table 1", SOLVER__EPOCHS=800),
    *facts(
        f"{IMAGENET} moco_v1_R50_IG1B ablation",
        f"{CODE}: there is no warm-up",
        SOLVER__WARMUP_STEPS=0,
    ),
    *facts(
        "moco_v2_R50_small moco_v2_R18_small",
        f"{OURS}, by {DEMO}: 8 BN groups, and no gain beyond 4,096 negatives",
        MODEL__QUEUE_SIZE=4096,
        MODEL__BN_GROUP_SIZE=32,
    ),
    *facts(
        SMALL,
        f"{OURS}: thousands of steps instead of a million; 0.99 costs 1.2 points on ImageNet at "
        f"4,096 negatives ({V1}, section 4.1)",
        MODEL__MOMENTUM=0.99,
    ),
    *facts(
        "moco_v2_R50_small moco_v2_R18_small",
        f"{OURS}: as ImageNet; 800 epochs are the most that {V2} and {DEMO} show to help",
        SOLVER__BATCH_SIZE=256,
        SOLVER__BASE_LR=0.03,
        SOLVER__EPOCHS=800,
    ),
    *facts(
        "moco_v2_R50_small moco_v2_R18_small",
        f"{OURS}: the first steps of a short run count",
        SOLVER__WARMUP_STEPS=200,
    ),
    *facts("moco_v2_R50_small", f"{OURS}: as the papers", MODEL__ARCH="resnet50"),
    *facts("moco_v2_R18", f"{OURS}: {DEMO} has it, too", MODEL__ARCH="resnet18"),
    *facts(
        "moco_v2_R18_cpu",
        f"{OURS}: fits 1,000 images and a CPU; the rate by the linear rule",
        MODEL__QUEUE_SIZE=512,
        MODEL__BN_GROUP_SIZE=16,
        VIEWS__CROP_SIZE=64,
        SOLVER__BATCH_SIZE=64,
        SOLVER__BASE_LR=0.0075,
        SOLVER__WARMUP_STEPS=100,
        SOLVER__EPOCHS=100,
    ),
    *facts(
        "supervised",
        f"{OURS}: the usual training on ImageNet, as in PyTorch's and torchvision's examples",
        METHOD="supervised",
        MODEL__ARCH="resnet50",
        VIEWS__CROP_SIZE=224,
        VIEWS__CROP_SCALE=[0.08, 1.0],
        VIEWS__FLIP_PROB=0.5,
        SOLVER__BATCH_SIZE=256,
        SOLVER__BASE_LR=0.1,
        SOLVER__SCHEDULE="multistep",
        SOLVER__MILESTONES=[30, 60],
        SOLVER__GAMMA=0.1,
        SOLVER__MOMENTUM=0.9,
        SOLVER__WEIGHT_DECAY=0.0001,
        SOLVER__EPOCHS=90,
    ),
    *facts(
        "supervised",
        f"{OURS}: no colour changes, as in that training",
        VIEWS__JITTER_PROB=0.0,
        VIEWS__GRAYSCALE_PROB=0.0,
    ),
]
UNUSED = {  # what a recipe does not look at, though its base states it
    "supervised_R50_90ep": {"MODEL.DIM", "MODEL.QUEUE_SIZE", "MODEL.MOMENTUM"},
    "ablation_end_to_end_R50_200ep": {"MODEL.MOMENTUM"},
    "moco_v1_R50_IG1B": {"SOLVER.MILESTONES", "SOLVER.EPOCHS"},
}

# Linear classification on ImageNet, top-1 in percent: what the sources report.
FIGURES = {
    "moco_v1_R50_200ep": ("60.6; 60.8 ± 0.2 over 5 trials", f"{V1}, table 1; official README"),
    "ablation_memory_bank_R50_200ep": ("58.0", f"{V1}, figure 3"),
    "ablation_end_to_end_R50_200ep": ("57.3", f"{V1}, figure 3"),
    "moco_v2_R50_200ep": ("67.5; 67.5 ± 0.1 over 5 trials", f"{V2}, table 1; official README"),
    "moco_v2_R50_800ep": ("71.1", f"{V2}, table 1"),
}


def facts_of(recipe: str) -> list[Fact]:
    """The facts of one recipe."""
    return [fact for fact in FACTS if any(recipe.startswith(name) for name in fact.recipes)]
