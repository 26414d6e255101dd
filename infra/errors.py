"""The one exception that means: the user can put this right."""

from __future__ import annotations


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
