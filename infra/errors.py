"""The one exception that means: the user can put this right; and how every command line tells it."""

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
# What a machine refuses whatever the program does, and what helps.
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "allow more open files on this machine (sysctl fs.file-max)",
}


class UserError(Exception):
    """A mistake in what the user gave us, told in one line: which thing, what is wrong with it, what to do.

    The command line prints it as ``error: …`` and exits with status 2. Any other exception is a bug.
    """

    def __init__(self, message: str) -> None:
        self.message = " ".join(message.split())
        super().__init__(self.message)

    # Its text stays what it was: Ray Data appends advice to the `args` of what its tasks raise.
    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return type(self), (self.message,)


def refusal(error: OSError, doing: str) -> str:
    """Return the line that says why `doing`, such as "write FILE", is not possible, and what helps."""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "choose another place")
    return f"cannot {doing}: {reason}: {remedy}"


def of_the_machine(error: BaseException | None) -> UserError | None:
    """Return the line for an exception, or a cause of it, that a full disk or a missing right has raised, else None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _REMEDIES and not hasattr(error, "cause"):  # Ray's double
            place = error.filename if isinstance(error.filename, (str, bytes)) else ""
            return UserError(refusal(error, f"use {os.fsdecode(place)}" if place else "go on"))
        error = getattr(error, "cause", None) or error.__cause__
    return None


def run(main: Callable[[], int | None], interrupted: str = "interrupted") -> NoReturn:
    """Call `main` and exit.

    A `UserError` becomes one line on stderr and status 2, as does what a full disk or a missing right raises, wherever;
    Ctrl-C becomes one line and status 130; a bug keeps its traceback.
    """
    interruption.listen()
    interruption.begin(interrupted)
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt as error:
        interruption.quiet()
        _leave(str(error) or interrupted, interruption.STATUS)
    except Exception as error:
        if interruption.raised():  # what became of a Ctrl-C on its way
            interruption.quiet()
            _leave(interrupted, interruption.STATUS)
        found = error if isinstance(error, UserError) else of_the_machine(error)
        if found is None:
            raise
        _leave(f"error: {found}", USER_ERROR_STATUS)


def _leave(line: str, status: int) -> NoReturn:
    sys.stderr.write(f"{line}\n")
    sys.exit(status)
