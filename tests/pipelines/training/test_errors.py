"""Which errors of workers are tried again, and which end a run."""

from __future__ import annotations

import pickle

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from infra.errors import UserError
from pipelines.training.errors import Repeats, final_error, note, worker_error

SHAPES = "mat1 and mat2 shapes cannot be multiplied (2x512 and 64x10)"


def raised(error: Exception, start: str, step: int = 7, rank: int = 0) -> Exception:
    """The error as Train's controller gets it from a worker."""
    try:
        raise error
    except Exception as caught:
        note(caught, start=start, rank=rank, step=step)
        return pickle.loads(pickle.dumps(caught))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SHAPES),
        ValueError("bad value"),
        ModuleNotFoundError("No module named 'timm'"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_an_error_that_comes_again_at_the_same_step_ends_the_run(error: Exception) -> None:
    repeats = Repeats()
    assert repeats.find({0: raised(error, "first")}) is None
    found = repeats.find({0: raised(error, "second")})
    assert type(found) is type(error) and str(found) == str(error)


def test_numbers_in_a_message_may_differ() -> None:
    repeats = Repeats()
    repeats.find({0: raised(RuntimeError("out of memory: 2.5 GiB at 0x7f01 are free"), "first")})
    assert repeats.find({0: raised(RuntimeError("out of memory: 3.125 GiB at 0xab are free"), "second")})


def test_one_rank_that_fails_again_is_enough() -> None:
    repeats = Repeats()
    closed = ConnectionError("Connection closed by peer [127.0.0.1]:1234")
    repeats.find({0: raised(closed, "a", rank=0), 1: raised(ValueError("v"), "b", rank=1)})
    assert repr(repeats.find({0: raised(ValueError("v"), "c", rank=0)})) == "ValueError('v')"


PASSING = {
    "another step": (raised(ValueError("v"), "first", step=7), raised(ValueError("v"), "second", step=8)),
    "another message": (raised(ValueError("v"), "first"), raised(ValueError("w"), "second")),
    "another type": (raised(ValueError("v"), "first"), raised(TypeError("v"), "second")),
    "the same start, looked at twice": (raised(ValueError("v"), "first"), raised(ValueError("v"), "first")),
    "storage": (raised(OSError("S3 is away"), "first"), raised(OSError("S3 is away"), "second")),
    "another worker is gone": (
        raised(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "first"),
        raised(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "second"),
    ),
    "NCCL": (
        raised(torch.distributed.DistBackendError("ncclSystemError: Last error"), "first"),
        raised(torch.distributed.DistBackendError("ncclSystemError: Last error"), "second"),
    ),
    "a worker that died": (ActorDiedError(), ActorDiedError()),
    "a worker that does not answer": (
        WorkerHealthCheckFailedError("it failed", ActorDiedError()),
        WorkerHealthCheckFailedError("it failed", ActorDiedError()),
    ),
    "no note": (ValueError("v"), ValueError("v")),
}


@pytest.mark.parametrize(("first", "second"), PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(first: Exception, second: Exception) -> None:
    repeats = Repeats()
    assert repeats.find({0: first}) is None
    assert repeats.find({0: second}) is None


def test_a_death_between_two_errors_begins_anew() -> None:
    repeats = Repeats()
    repeats.find({0: raised(ValueError("v"), "first")})
    assert repeats.find({0: raised(ValueError("v"), "second"), 1: ActorDiedError()}) is None
    assert repeats.find({0: raised(ValueError("v"), "third")}) is None
    assert repeats.find({0: raised(ValueError("v"), "fourth")}) is not None


def test_what_a_user_can_put_right_is_one_line_and_a_bug_keeps_its_traceback() -> None:
    memory = final_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"))
    assert isinstance(memory, UserError)
    assert str(memory) == (
        "CUDA out of memory, twice at the same step: lower optim.global_batch_size, set compute.microbatch_size, or "
        "set model.activation_checkpointing=true"
    )
    bug = raised(RuntimeError(SHAPES), "second")
    assert final_error(bug) is bug
    assert "raised in start second, worker 0, step 7:\nTraceback" in bug.__notes__[0]


def test_the_workers_own_error_is_found_in_what_train_raises() -> None:
    from ray.train import ControllerError

    bug = raised(ValueError("v"), "second")
    assert worker_error(ControllerError(bug)) is bug
    assert worker_error(ControllerError(ValueError("Train's own"))) is None
    assert worker_error(ValueError("v")) is None
