"""The figures of a training step, and what they mean.

Everything is measured on tensors that the step has made anyway, in the steps that are logged, and
over the global batch. Other steps keep nothing and never wait for the device.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping

import torch

from pretrain.methods import Method
from pretrain.monitor import measures
from pretrain.monitor.verdict import Contrast, leak, plain_verdict, verdict
from runtime.distributed import all_gather

log = logging.getLogger("moco")


class Signals:
    """Listens to a run's steps. Made and called on every rank."""

    def __init__(self, method: Method, contrast: Contrast | None) -> None:
        self.method, self.contrast = method, contrast
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._warned = False
        self._recent: deque[Mapping[str, float]] = deque(maxlen=contrast.steps if contrast else 1)

    def listen(self, on: bool) -> None:
        """Before a step: forget the last one; keep the queries and keys of this one if ``on``."""
        self._pairs = []
        self.method.watch(self._observe if on else None)

    def _observe(self, q: torch.Tensor, k: torch.Tensor) -> None:
        self._pairs.append((q.detach(), k.detach()))

    def figures(self) -> dict[str, float]:
        """After a step that was listened to: its figures, the same on every rank.

        ``grad_norm``; where there are queries and keys also ``alignment``, ``uniformity``,
        ``spread`` and ``rank`` of the queries, and two percentages of queries whose own key is the
        nearest: ``batch_acc1`` among the keys of their own global batch; where the method still has
        them, ``before_acc1`` among the others' places taken by the keys of the batch before.
        """
        values = {"grad_norm": measures.gradient_norm(self.method.model.parameters())}
        if self._pairs:
            q, k = (all_gather(torch.cat(part)) for part in zip(*self._pairs, strict=True))
            values |= {
                "batch_acc1": measures.retrieval(q, k),
                "alignment": measures.alignment(q, k),
                "uniformity": measures.uniformity(q),
                "spread": measures.feature_spread(q),
                "rank": measures.effective_rank(q),
            }
            before = self.method.keys_before(len(q))
            if before is not None:
                values["before_acc1"] = measures.retrieval(q, k, before)
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

    def judge(self, done: int, figures: Mapping[str, float]) -> str:
        """A verdict on the steps up to ``done`` in a few words; a leak is warned of once.

        ``figures``: ``loss``, ``acc1`` and :meth:`figures` of this step. It is judged together with
        the last logged ones, so that a small batch does not speak for itself.
        """
        if self.contrast is None:
            return plain_verdict(figures["loss"], self.method.chance_loss)
        if done > self.contrast.filling:
            self._recent.append(figures)
            count = len(self._recent)
            figures = {name: sum(row[name] for row in self._recent) / count for name in figures}
        full = len(self._recent) == self._recent.maxlen
        betrayal = leak(done, figures, self.contrast) if full else None
        if betrayal and not self._warned:
            self._warned = True
            log.warning("step %d: %s", done, betrayal)
        return verdict(done, figures, self.contrast)
