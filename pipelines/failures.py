"""Errors of workers: a user's on its way to the terminal, through whatever Ray wraps it in; and those that repeat."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from infra.errors import UserError, of_the_machine
from pipelines.ray_internals import worker_died


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


class Repeats:
    """Tells an error that workers raise again and again from one that may pass.

    An error repeats if a worker raised it twice in a row at the same step: the same type, and the same message but for
    numbers. It ends the run, since a third start would fail as well: a bug, a shape that does not fit, memory that is
    too small, an import that is missing. What may pass is tried again, up to `run.max_failures` times: a worker that
    died, and errors of network, storage, and the exchange between workers, which the death of another worker causes.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], str] = {}

    def find(self, errors: Mapping[int, Exception]) -> Exception | None:
        """Return the error of these, one for each rank that failed, which came before; remember them for next time."""
        raised = {} if any(worker_died(error) for error in errors.values()) else errors
        told = [(error, _signature(error), _place(error)[0]) for error in raised.values() if not _may_pass(error)]
        known, self._last = self._last, {signature: start for _, signature, start in told}
        return next((error for error, signature, start in told if known.get(signature, start) != start), None)


def note(error: Exception, *, start: str, rank: int, step: int) -> None:
    """Add to the error where it was raised: in which start of the workers, by which of them, at which step."""
    error.add_note(f"{_PLACE} {start}, worker {rank}, step {step}:\n{traceback.format_exc()}")


def last_word(error: Exception) -> Exception:
    """Return what a run ends with that met `error` twice: one line for what the user can put right, else itself."""
    for pattern, advice in _ADVICE.items():
        if found := re.search(rf"[^.\n]*{pattern}[^.\n]*", str(error), re.IGNORECASE):
            return UserError(f"{' '.join(found[0].split())}, twice at the same step: {advice}")
    return error


def of_worker(error: BaseException) -> Exception | None:
    """Return the worker's own error where Ray Train's `error` is its wrapping of one with a `note`."""
    inner = getattr(error, "controller_failure", None)
    return inner if isinstance(inner, Exception) and _place(inner)[0] else None


_PLACE = "raised in start"
_ADVICE = {
    "out of memory": "lower optim.global_batch_size, set compute.microbatch_size, or compute activations twice "
    "(model.activation_checkpointing)",
    "more than 1 value per channel": "BatchNorm had a single image with features of 1 x 1: raise "
    "optim.global_batch_size or data.image_size",
}
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?", re.IGNORECASE)
_BETWEEN_WORKERS = re.compile(r"torch\.distributed|gloo|nccl|connection|timed out|timeout|peer", re.IGNORECASE)


def _place(error: Exception) -> tuple[str, str]:
    """The start and the step of the newest note; "" where there is none."""
    for text in reversed(getattr(error, "__notes__", ())):
        if found := re.match(rf"{_PLACE} (\S+), worker \d+, step (\d+):", text):
            return found[1], found[2]
    return "", ""


def _signature(error: Exception) -> tuple[str, ...]:
    return type(error).__qualname__, _NUMBER.sub("N", str(error)), _place(error)[1]


def _may_pass(error: Exception) -> bool:
    return isinstance(error, OSError) or bool(_BETWEEN_WORKERS.search(f"{type(error).__module__} {error}"))
