"""The self-supervised half: Momentum Contrast (He et al., CVPR 2020; Chen et al., 2020)."""

import runtime  # noqa: F401  first: it sets how torch's threads wait
