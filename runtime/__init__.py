"""What every part needs and no library gives: launch, run folders, atomic files, errors, logs.

Imports none of the other packages of this project.
"""

import os
import sys
import warnings

if os.name != "posix":
    print("error: this needs Linux or macOS; on Windows use WSL 2", file=sys.stderr)
    raise SystemExit(2)

# Before torch is loaded (the packages import this one first): idle threads sleep instead of
# spinning. On two cores with one other busy process, spinning made a step 37 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# fvcore scripts its losses at import; a user of this project can do nothing about it.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
