"""Any toolkit's ResNet checkpoint → one verified state dict → Detectron2's and other forms."""

import runtime  # noqa: F401  first: it sets how torch's threads wait
