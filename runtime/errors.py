"""The one exception that means "the user can fix this", and what a command line makes of it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

EXIT_WRONG_INPUT = 2
EXIT_DIVERGED = 1
SIGNALLED = 128  # exit codes above it name the signal that ended a run
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BROKEN_DISK = (errno.EIO, errno.EROFS)


class InputError(Exception):
    """Wrong input or usage. The message is one line: what is wrong, where, and what to do."""


class Stopped(BaseException):
    """A signal ended the run in good order: no error, like KeyboardInterrupt.

    ``code`` is the exit code, 128 + the signal's number.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def exit_code(command: Callable[[], object]) -> int:
    """Run ``command`` and turn its outcome into a process exit code.

    Returns 0 on success; 2 on :class:`InputError` and where a disk is full or broken, and 1 where
    a training has diverged (FloatingPointError), with one line on stderr and no traceback; 143 or
    130 where SIGTERM or Ctrl-C stopped a run (:class:`Stopped`), and 130 on any other Ctrl-C. Every
    other exception propagates: Python prints the traceback and exits with 1.
    """
    try:
        command()
    except InputError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return EXIT_WRONG_INPUT
    except OSError as error:
        if error.errno not in FULL_DISK + BROKEN_DISK:
            raise
        print(f"error: {_of_the_disk(error)}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    except FloatingPointError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return EXIT_DIVERGED
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _of_the_disk(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    remedy = "make room" if error.errno in FULL_DISK else "look at the disk"
    return f"{error.strerror}{where}: {remedy} and run it again, a training with --resume"
