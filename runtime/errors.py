"""The one exception that means "the user can fix this", and what a command line makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_WRONG_INPUT = 2
EXIT_DIVERGED = 1


class InputError(Exception):
    """Wrong input or usage. The message is one line: what is wrong, where, and what to do."""


def exit_code(command: Callable[[], object]) -> int:
    """Run ``command`` and turn its outcome into a process exit code.

    Returns 0 on success, 2 on :class:`InputError`, 1 where a training has diverged
    (FloatingPointError), both with one line on stderr and no traceback, and 130 on Ctrl-C. Every
    other exception propagates: Python prints the traceback and exits with 1.
    """
    try:
        command()
    except InputError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return EXIT_WRONG_INPUT
    except FloatingPointError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return EXIT_DIVERGED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
