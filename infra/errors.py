"""The one exception that means: the user can put this right."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave us, told in one line: which thing, what is wrong with it, what to do.

    The command line prints it as ``error: …`` and exits with status 2. Any other exception is a bug.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
