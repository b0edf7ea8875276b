"""What is left to do with a view once it is cropped, as one row of numbers.

A view of DATA.PIPELINE split is cropped by a worker and finished on the training device. Between
the two its other parameters travel as one float32 row:

======== =========================================================================================
column   content
======== =========================================================================================
0 - 6    operations of the colour jitter in their order, 0 for none; hue always in column 3, what
         comes before it from column 0 on, what comes after it from column 4 on
7 - 13   their factors
14       grayscale: 0 no, 1 before the jitter, 2 after it
15       standard deviation of the blur in pixels, 0 for none
16       1 for a flip
======== =========================================================================================

With hue in one column, a batch whose images have their operations in different orders still turns
all its hues in one go, which is the dearest of the operations.
"""

from __future__ import annotations

import numpy as np

from pretrain.views import OPERATIONS, View, ViewRecipe

NUMBERS = {name: number for number, name in enumerate(OPERATIONS, start=1)}
CONTRAST, SATURATION = NUMBERS["contrast"], NUMBERS["saturation"]
SLOTS, HUE_SLOT = 7, 3  # three operations fit on either side
GREY, SIGMA, FLIP = 14, 15, 16
WIDTH = 17


def pack(recipe: ViewRecipe, view: View) -> np.ndarray:
    """The row of ``view``, float32 WIDTH: all but its crop."""
    row = np.zeros(WIDTH, dtype=np.float32)
    names = [name for name, _ in view.jitter]
    shift = HUE_SLOT - names.index("hue") if "hue" in names else HUE_SLOT + 1
    for i, (name, factor) in enumerate(view.jitter):
        slot = i if i + shift < HUE_SLOT else i + shift
        row[slot], row[SLOTS + slot] = NUMBERS[name], factor
    row[GREY] = view.grayscale * (1 if recipe.grayscale_first else 2)
    row[SIGMA] = view.blur_sigma or 0.0
    row[FLIP] = view.flip
    return row
