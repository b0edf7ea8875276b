"""What every part needs and no library gives: launch, run folders, atomic files, errors, logs.

Imports none of the other packages of this project.
"""

import warnings

# fvcore scripts its losses at import; a user of this project can do nothing about it.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
