"""All signals of one run behind one object: the trainer calls it and writes what it returns."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from pathlib import Path

from fvcore.common.config import CfgNode

from pretrain.methods import Method
from pretrain.monitor.held_out import HeldOut
from pretrain.monitor.neighbours import save_neighbours
from pretrain.monitor.signals import Signals
from pretrain.monitor.verdict import Contrast
from pretrain.source.images import ImageSource
from runtime.errors import InputError

log = logging.getLogger("moco")

NEIGHBOURS = "neighbours.png"


class Monitor:
    """Measures beside the training, which it does not change. Made and called on every rank.

    Raises InputError where the folders of ``MONITOR.*`` do not fit.
    """

    def __init__(self, cfg: CfgNode, method: Method, images: ImageSource, workers: int) -> None:
        self.cfg, self.method, self.images, self.workers = cfg, method, images, workers
        self.signals = Signals(method, _contrast(cfg, len(images.files)))
        self.held_out = HeldOut.scan(cfg)

    def measure(self, when: str) -> dict[str, float]:
        """The held-out figures at this point of the run, also told in the log; {} for no folder."""
        figures = self.held_out.measure(self.method.encoder, self.cfg, self.workers)
        words = [
            f"{name} {figures[f'{key}_acc1']:.1f} % (chance {figures[f'{key}_chance']:.1f} %)"
            for key, name in (("knn", "kNN"), ("retrieval", "retrieval of held-out views"))
            if f"{key}_acc1" in figures
        ]
        if words:
            log.info("%s: %s", when, ", ".join(words))
        return figures

    def has_neighbours(self, output: Path) -> bool:
        """Whether :meth:`save_neighbours` has come to its end in an earlier start."""
        return (output / NEIGHBOURS).with_suffix(".txt").exists()  # written after the picture

    def save_neighbours(self, output: Path, unreadable: Collection[str]) -> None:
        """At the end: write the picture, without those images, and a text file of the same name."""
        path = output / NEIGHBOURS
        try:
            save_neighbours(
                self.method.encoder, self.images, unreadable, self.cfg, self.workers, path
            )
        except InputError as error:  # the run has ended well; this is only a picture
            log.warning("no %s: %s", path.name, error)
        else:
            log.info("images beside their nearest by the encoder: %s", path)


def _contrast(cfg: CfgNode, count: int) -> Contrast | None:
    """None for the supervised counterpart, which compares with no other images."""
    if cfg.METHOD != "moco":
        return None
    batch, negatives = cfg.SOLVER.BATCH_SIZE, cfg.MODEL.QUEUE_SIZE
    epoch = count // batch
    filling = math.ceil(negatives / batch)
    if cfg.MODEL.DICTIONARY == "memory_bank":
        filling = epoch
    elif cfg.MODEL.DICTIONARY == "end_to_end":
        negatives, filling = batch - 1, 0
    first_pass = 0 if cfg.MODEL.INIT else epoch  # trained before, it may know all at once
    return Contrast(batch, negatives, filling, first_pass, cfg.MODEL.TEMPERATURE)
