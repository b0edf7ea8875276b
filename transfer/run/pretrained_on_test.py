"""Test images among the pretraining images: the test is then too easy for one arm."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from convert.backbone_file import Backbone
from runtime.errors import InputError
from runtime.files import sha256
from transfer.data.dataset import Dataset

log = logging.getLogger("moco")


def seen_test_images(
    test: Sequence[Dataset], backbone: Backbone | None, allowed: bool
) -> int | None:
    """How many test images the encoder was pretrained on, as far as its file remembers them.

    None where there is no such file, or it does not say. Raises InputError if there are any and
    that is not ``allowed``.
    """
    if backbone is None or backbone.seen_images is None:
        return None
    files = sorted({str(record["file_name"]) for dataset in test for record in dataset.records})
    seen = backbone.seen_images.among(files, lambda i: bytes.fromhex(sha256(files[i])))
    if not seen:
        return 0
    fact = backbone.seen_images.sentence(seen, len(files))
    if not allowed:
        raise InputError(
            f"{fact}: pretrain without them, or run it as it is with --allow-deviation, which the "
            "report will say"
        )
    log.warning("%s", fact)
    return len(seen)
