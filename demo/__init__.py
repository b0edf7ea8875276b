"""The demo: small drawn scenes that need no download, and the whole chain on them.

None of the other packages knows of it.
"""

import runtime  # noqa: F401  first: it sets how torch's threads wait
