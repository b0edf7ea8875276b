"""What the figures of a step mean, in words. Every threshold has its reason beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# exp(loss) is the number of equally likely keys that would give this loss. It must be a tenth below
# the number of all candidates before we speak of more than chance.
NATS_BELOW_CHANCE = -math.log(0.9)
# Who guesses among the N keys of a batch is right once in N queries on average, whatever N is
# (Poisson): more than five times has a probability of 0.06 %.
HITS_BY_LUCK = 5
# Two outputs differ by about the squared spread in cosine, hence by its share of the temperature
# in logits: below 2 % all candidates are alike, and the loss must stay at ln(K+1).
COLLAPSED_SHARE = 0.02
# Percent. With shuffled BN the paper reaches 97 % after 80 epochs, without more than 99.9 %
# (figure A.1); and see docs/monitor.md for what we measured.
NEAR_ALL = 95.0

LEAK = (
    "leak: {acc1:.0f} % of the queries find their key among {negatives} others of earlier batches, "
    "but only {batch_acc1:.0f} % among the keys of their own batch: the encoder tells batches "
    "apart, not images. Check that MODEL.SHUFFLE_BN is on and that MODEL.BN_GROUP_SIZE is well "
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
    return "learning" if hits > HITS_BY_LUCK else "tells new keys from old, not yet images"


def leak(done: int, figures: Mapping[str, float], contrast: Contrast) -> str | None:
    """What betrays the keys, as a sentence; None where nothing seems to.

    Negatives are keys of other batches. An encoder that tells images apart finds its key among the
    fewer ones of its own batch at least as well; one that reads BN's statistics does not.
    """
    if done <= contrast.filling or figures["acc1"] < NEAR_ALL:
        return None
    if figures["batch_acc1"] < figures["acc1"] / 2:
        return LEAK.format(**figures, negatives=contrast.negatives)
    if contrast.first_pass and done <= contrast.filling + contrast.first_pass:
        return TOO_EASY.format(**figures, negatives=contrast.negatives)
    return None


def plain_verdict(loss: float, chance: float) -> str:
    """The same for a method without negatives: its loss beside that of guessing."""
    return "learning" if loss < chance - NATS_BELOW_CHANCE else "at chance"
