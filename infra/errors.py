"""The exception that means "the user can fix this", and how every command line prints it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from infra import interruption

USER_ERROR_STATUS = 2
_PERMISSION = "check its permissions, or choose another place"
_SPACE = "free some space there, or choose another place, and run the same command again"
# Errors of the machine that no program can avoid, and what helps.
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: "choose a writable place",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "allow more open files on this machine (sysctl fs.file-max)",
}


class UserError(Exception):
    """A user error in one line: what is wrong, where, and what to do.

    The command line prints it as ``error: …`` and exits with status 2. Any other exception is a bug.
    """

    def __init__(self, message: str) -> None:
        self.message = " ".join(message.split())
        super().__init__(self.message)

    # The text must not change: Ray Data appends advice to the `args` of exceptions that its tasks raise.
    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return type(self), (self.message,)


def refusal(error: OSError, doing: str) -> str:
    """Return the line that says why `doing`, such as "write FILE", is impossible, and what helps."""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "choose another place")
    return f"cannot {doing}: {reason}: {remedy}"


def machine_error(error: BaseException | None) -> UserError | None:
    """Return a UserError if the exception or a cause is an error of the machine, such as a full disk; else None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _REMEDIES and not hasattr(error, "cause"):  # not Ray's copy
            place = error.filename if isinstance(error.filename, (str, bytes)) else ""
            return UserError(refusal(error, f"use {os.fsdecode(place)}" if place else "continue"))
        error = getattr(error, "cause", None) or error.__cause__
    return None


def run(main: Callable[[], int | None], interrupted: str = "interrupted") -> NoReturn:
    """Call `main` and exit.

    A `UserError` prints one line on stderr and exits with status 2. So does an error of the machine, such as a full
    disk or a missing permission. Ctrl-C prints one line and exits with status 130. A bug keeps its traceback.
    """
    interruption.listen()
    interruption.begin(interrupted)
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt as error:
        _leave(str(error) or interrupted, interruption.STATUS)
    except Exception as error:
        if interruption.raised():  # other code turned the Ctrl-C into this exception
            _leave(interrupted, interruption.STATUS)
        found = error if isinstance(error, UserError) else machine_error(error)
        if found is None:
            raise
        _leave(f"error: {found}", USER_ERROR_STATUS)


def _leave(line: str, status: int) -> NoReturn:
    """Print the last line and exit; after a Ctrl-C nothing follows it."""
    if status == interruption.STATUS:
        interruption.last_line(line)
    else:
        sys.stderr.write(f"{line}\n")
    sys.exit(status)


def user_error(error: BaseException | None) -> UserError | None:
    """Return the `UserError` in an exception's chain of causes, or one for an error of the machine in it; else None."""
    first, seen = error, set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or getattr(error, "controller_failure", None)
        if isinstance(error, UserError) and inner is None:  # with a cause it is Ray's copy, whose text is a traceback
            return UserError(str(error))
        error = inner or error.__cause__ or error.__context__
    return machine_error(first)
