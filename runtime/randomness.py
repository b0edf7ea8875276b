"""Random draws as pure functions of where they are used, never a state that has to be saved.

A counter-based generator (Philox, Salmon et al., SC 2011) gives the stream that belongs to a key
and a counter. The key is the run's seed and the purpose of the draw, the counter is the place:
epoch, index, view. So the draws do not depend on the number of processes or workers, and a resumed
run repeats nothing and skips nothing.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

MAX_PLACES = 3


def generator(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """NumPy generator of the draws for ``purpose`` at ``place`` (up to three integers >= 0).

    Two different (seed, purpose, place) give independent streams. About 20 microseconds a call.
    """
    if len(place) > MAX_PLACES:
        raise ValueError(f"at most {MAX_PLACES} integers name a place, got {place}")
    # Word 0 of the 256-bit counter counts the draws; the place goes to the words above it.
    counter = [0, *place, *[0] * (MAX_PLACES - len(place))]
    key = [seed, zlib.crc32(purpose.encode())]
    bits = np.random.Philox(
        counter=np.array(counter, dtype=np.uint64), key=np.array(key, dtype=np.uint64)
    )
    return np.random.Generator(bits)


def torch_generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """CPU generator of torch seeded by the same pure function."""
    first = generator(seed, purpose, *place).integers(2**63)
    return torch.Generator().manual_seed(int(first))
