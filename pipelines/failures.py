"""A user's error on its way from a worker to the terminal, through whatever Ray wraps it in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from infra.errors import UserError, of_the_machine


@contextmanager
def told_plainly() -> Iterator[None]:
    """A user's error, however deep in Ray's, comes out as itself; so do values that no training can go on with."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(str(error)) from error
    except Exception as error:
        found = user_error(error)
        if found is None:
            raise
        raise found from error


def user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` that an exception is, or was caused by, or that its cause is as good as: a full disk, say."""
    first, seen = error, set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or getattr(error, "controller_failure", None)
        if isinstance(error, UserError) and inner is None:  # with one, it is Ray's double of it: its text a traceback
            return UserError(str(error))
        error = inner or error.__cause__ or error.__context__
    return of_the_machine(first)
