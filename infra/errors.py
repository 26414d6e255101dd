"""The one exception that means: the user can put this right; and how every command line tells it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

USER_ERROR_STATUS = 2
_INTERRUPTED_STATUS = 130


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


def run(main: Callable[[], int | None], interrupted: str = "interrupted") -> NoReturn:
    """Call `main` and exit; a `UserError` becomes one line on stderr and status 2, a bug keeps its traceback."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(USER_ERROR_STATUS)
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        sys.exit(_INTERRUPTED_STATUS)
