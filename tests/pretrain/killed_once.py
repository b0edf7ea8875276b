"""tools/pretrain.py whose rank 1 is killed before step KILLED_AT, the first time it is started."""

import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

from pretrain import schedule  # noqa: E402

rate = schedule.rate


def rate_or_death(solver: object, step: int, *rest: object) -> float:
    first, victim = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0", os.environ["RANK"] == "1"
    if first and victim and step == int(os.environ["KILLED_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(solver, step, *rest)


schedule.rate = rate_or_death
sys.argv[0] = "tools/pretrain.py"
runpy.run_path("tools/pretrain.py", run_name="__main__")
