"""Random draws as pure functions of where they are used, never a state that has to be saved.

A counter-based generator (Philox, Salmon et al., SC 2011) gives the stream that belongs to a key
and a counter. The key is the run's seed and the purpose of the draw, the counter is the place:
epoch, index, view. So the draws do not depend on the number of processes or workers, and a resumed
run repeats nothing and skips nothing.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence

MAX_PLACES = 3


class _Key(ISeedSequence):
    """A key of Philox, taken as it is.

    Named by ``key=``, NumPy would read the system's entropy first and throw it away, which takes
    longer than all draws of a view.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self.words = np.array([seed, zlib.crc32(purpose.encode())], dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        """The key's two 64-bit words, all that Philox asks for."""
        return self.words


_key = lru_cache(_Key)


def generator(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """NumPy generator of the draws for ``purpose`` at ``place`` (up to three integers >= 0).

    Two different (seed, purpose, place) give independent streams. About 4 microseconds a call.
    """
    if len(place) > MAX_PLACES:
        raise ValueError(f"at most {MAX_PLACES} integers name a place, got {place}")
    # Word 0 of the 256-bit counter counts the draws; the place goes to the words above it.
    counter = [0, *place, *[0] * (MAX_PLACES - len(place))]
    key: Any = _key(seed, purpose)
    bits = np.random.Philox(key, counter=np.array(counter, dtype=np.uint64))
    return np.random.Generator(bits)


def torch_generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """CPU generator of torch seeded by the same pure function."""
    first = generator(seed, purpose, *place).integers(2**63)
    return torch.Generator().manual_seed(int(first))
