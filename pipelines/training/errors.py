"""Errors of workers: take a user's error out of Ray's wrappers, and find an error that repeats."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from infra.errors import UserError, user_error
from pipelines.ray_internals.train import worker_died


@contextmanager
def unwrapped_user_errors() -> Iterator[None]:
    """Raise the UserError that Ray's exceptions wrap. A FloatingPointError (a loss that is not finite) becomes one."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(str(error)) from error
    except Exception as error:
        found = user_error(error)
        if found is None:
            raise
        raise found from error


class Repeats:
    """Finds an error that workers raise at every start, as opposed to one that a retry may cure.

    An error repeats if a worker raised it twice in a row at the same step: the same type, and the same message except
    for numbers. It ends the run, because a third start would fail too: a bug, a wrong shape, too little memory, a
    missing import. Other errors are retried, up to `run.max_failures` times: a worker that died, and errors of network,
    storage and communication between workers. The death of one worker causes such errors in the others.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], str] = {}

    def find(self, errors: Mapping[int, Exception]) -> Exception | None:
        """Return the error that repeats one of the call before, or None. `errors` has one for each rank that failed."""
        raised = {} if any(worker_died(error) for error in errors.values()) else errors
        candidates = [(error, _signature(error), _place(error)[0]) for error in raised.values() if not _may_pass(error)]
        known, self._last = self._last, {signature: start for _, signature, start in candidates}
        return next((error for error, signature, start in candidates if known.get(signature, start) != start), None)


def note(error: Exception, *, start: str, rank: int, step: int) -> None:
    """Add a note to the error: the start of the workers, the rank and the step at which it was raised."""
    error.add_note(f"{_PLACE} {start}, worker {rank}, step {step}:\n{traceback.format_exc()}")


def final_error(error: Exception) -> Exception:
    """Return the error that ends a run after `error` came twice: a UserError if a recipe key cures it, else `error`."""
    for pattern, advice in _ADVICE.items():
        if found := re.search(rf"[^.\n]*{pattern}[^.\n]*", str(error), re.IGNORECASE):
            return UserError(f"{' '.join(found[0].split())}, twice at the same step: {advice}")
    return error


def worker_error(error: BaseException) -> Exception | None:
    """Return the worker's own error if Ray Train's `error` wraps one that has a `note`, else None."""
    inner = getattr(error, "controller_failure", None)
    return inner if isinstance(inner, Exception) and _place(inner)[0] else None


_PLACE = "raised in start"
_ADVICE = {
    "out of memory": "lower optim.global_batch_size, set compute.microbatch_size, or set "
    "model.activation_checkpointing=true",
    "more than 1 value per channel": "BatchNorm got a single image with features of 1 x 1: raise "
    "optim.global_batch_size or data.image_size",
}
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?", re.IGNORECASE)
_BETWEEN_WORKERS = re.compile(r"torch\.distributed|gloo|nccl|connection|timed out|timeout|peer", re.IGNORECASE)


def _place(error: Exception) -> tuple[str, str]:
    """Return the start and the step of the newest `note`; two empty strings if there is none."""
    for text in reversed(getattr(error, "__notes__", ())):
        if found := re.match(rf"{_PLACE} (\S+), worker \d+, step (\d+):", text):
            return found[1], found[2]
    return "", ""


def _signature(error: Exception) -> tuple[str, ...]:
    return type(error).__qualname__, _NUMBER.sub("N", str(error)), _place(error)[1]


def _may_pass(error: Exception) -> bool:
    return isinstance(error, OSError) or bool(_BETWEEN_WORKERS.search(f"{type(error).__module__} {error}"))


_OWN_FRACTION = 0.5  # of the GPU's memory


def memory_error(error: Exception, device: torch.device, images: int) -> UserError | None:
    """Return a UserError for a worker that filled its GPU with `images` in a forward pass; None for any other error.

    Also None if other processes hold most of the memory, such as a worker that was just killed: a retry may succeed.
    """
    if not isinstance(error, torch.OutOfMemoryError) or device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    if torch.cuda.max_memory_reserved(device) < _OWN_FRACTION * total:
        return None
    name = torch.cuda.get_device_name(device)
    return UserError(
        f"out of memory on {device} ({name}, {total / 2**30:.0f} GiB) with {images} images in a forward pass: set "
        f"compute.microbatch_size={max(1, images // 2)} or lower, or model.activation_checkpointing=true"
    )
