"""What the figures of a step mean, in words. Every threshold has its reason beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# exp(loss) is the number of equally likely keys that would give this loss. It must be a tenth below
# the number of all candidates before we speak of more than chance.
NATS_BELOW_CHANCE = -math.log(0.9)
# A verdict rests on as many queries, from as many logged steps as that takes: of 95 % of them the
# standard error is 1.4 points, while of a batch of 8 it would be 8 points.
QUERIES = 256
# Who guesses among the N keys of a batch is right once in N queries on average, whatever N is
# (Poisson, standard deviation 1): we speak of learning from four standard errors on.
DEVIATIONS = 4
# Two outputs differ by about the squared spread in cosine, hence by its share of the temperature
# in logits: below 2 % all candidates are alike, and the loss must stay at ln(K+1).
COLLAPSED_SHARE = 0.02
# Percent. With shuffled BN the paper reaches 97 % after 80 epochs, without it more than 99.9 %
# (figure A.1): so much in the first epoch is no achievement.
NEAR_ALL = 95.0
# Points between finding one's key among those of the batch before and among those of one's own
# batch, which are as many. Keys one step apart have hardly drifted, so an encoder that tells images
# apart finds both equally hard. 256 queries know the difference to 4.4 points at worst (standard
# error): this is four of them, and a little more.
MUCH_EASIER = 20.0

LEAK = (
    "leak: {before_acc1:.0f} % of the queries find their key among keys of the batch before, but "
    "only {batch_acc1:.0f} % among the as many keys of their own batch: the encoder tells batches "
    "apart, not only images. Check that MODEL.SHUFFLE_BN is on and MODEL.BN_GROUP_SIZE well "
    "below SOLVER.BATCH_SIZE (MoCo paper, section 3.3)"
)
TOO_EASY = (
    "leak: {acc1:.0f} % of the queries find their key among {negatives} others in the first pass "
    "over the images: something betrays it. Look at views.png: are the two views of an image "
    "different, and the images themselves?"
)


@dataclass(frozen=True)
class Contrast:
    """What a query is compared with: its key, and K ``negatives``.

    Attributes:
        batch_size: N, images in a global batch.
        negatives: K.
        filling: steps until the keys of the random start have left the dictionary.
        first_pass: steps of the first epoch; 0 for an encoder that is not new.
        temperature: τ.
    """

    batch_size: int
    negatives: int
    filling: int
    first_pass: int
    temperature: float

    @property
    def steps(self) -> int:
        """Logged steps that a verdict rests on."""
        return max(QUERIES // self.batch_size, 1)


def verdict(done: int, figures: Mapping[str, float], contrast: Contrast) -> str:
    """What the figures of step ``done`` (1-based) say, in a few words.

    ``figures`` has ``loss``, ``acc1`` and those of
    :meth:`pretrain.monitor.signals.Signals.figures`.
    """
    if done <= contrast.filling:
        return "dictionary still filling"
    if figures["spread"] ** 2 < COLLAPSED_SHARE * contrast.temperature:
        return "collapsed: all images look alike to the encoder"
    if figures["loss"] > math.log(contrast.negatives + 1) - NATS_BELOW_CHANCE:
        return "at chance"
    if leak(done, figures, contrast):
        return "leak"
    hits = figures["batch_acc1"] / 100 * contrast.batch_size
    by_luck = 1 + DEVIATIONS / math.sqrt(contrast.steps)
    return "learning" if hits > by_luck else "tells new keys from old, not yet images"


def leak(done: int, figures: Mapping[str, float], contrast: Contrast) -> str | None:
    """What betrays the keys, as a sentence; None where nothing seems to.

    Negatives are keys of other batches. An encoder that tells images apart finds its key among
    those of the batch before no more easily than among those of its own batch; one that reads BN's
    statistics does. Without ``before_acc1`` only the second alarm is raised: nearly all found in
    the first pass over the images.
    """
    if done <= contrast.filling:
        return None
    before, within = figures.get("before_acc1", 0.0), figures["batch_acc1"]
    if before - within >= MUCH_EASIER:
        return LEAK.format(before_acc1=before, batch_acc1=within)
    found = figures["acc1"]
    if found >= NEAR_ALL and done <= contrast.filling + contrast.first_pass and contrast.first_pass:
        return TOO_EASY.format(**figures, negatives=contrast.negatives)
    return None


def plain_verdict(loss: float, chance: float) -> str:
    """The same for a method without negatives: its loss beside that of guessing."""
    return "learning" if loss < chance - NATS_BELOW_CHANCE else "at chance"
