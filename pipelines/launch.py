"""One `fit()` of Ray Train: workers, restarts, and errors that come out as they went in."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from infra.storage import pyarrow_filesystem
from pipelines.data.ingest import IngestConfig, Stream, remaining
from pipelines.failures import Repeats, last_word, of_worker, user_error
from pipelines.leaving import Cause
from pipelines.mailbox import Event
from pipelines.placement import Placement
from pipelines.recipe import Recipe
from pipelines.rendezvous import NodeAddress
from pipelines.reporting import Reporting
from pipelines.worker import Job, train_worker

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class _Failures(ray.train.UserCallback):
    """On Train's controller: a user's error ends the run, and one that repeats; any other is told and tried again."""

    def __init__(self, mailbox: ActorHandle[Any]) -> None:
        self._mailbox = mailbox
        self._repeats = Repeats()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            found = user_error(error)
            if found is not None:
                raise found  # an error of the controller itself is not tried again
        repeated = self._repeats.find(worker_exceptions)
        if repeated is not None:
            raise last_word(repeated)
        rank, error = next(iter(worker_exceptions.items()))
        text = f"worker {rank} failed ({type(error).__name__}): going on from the last checkpoint"
        self._mailbox.put.remote(Event(text=text, training=False))


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to `leaving.stop_on_signals`: Train's own handler kills the workers, and commits nothing."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Keep the handler there is."""


class _TrialTrainer(_Trainer):
    """Of a trial, which Tune may stop at any time, and whose study keeps its placement groups (`tuning/groups.py`).

    Train's own cleaner is detached and would outlive it: where no dashboard runs, it never learns that it is gone.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # of Train V2, by a switch
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]


def launch(
    recipe: Recipe,
    placement: Placement,
    stream: Stream,
    start_uri: str,
    mailbox: ActorHandle[Any],
    reporting: Reporting | None = None,
) -> Cause:
    """Run every worker to the last step, or to where there is cause to leave.

    Raises:
        UserError: a worker or a data task met one.
        Exception: what a worker raised twice in a row at the same step.
        ray.train.TrainingFailedError: more failures than `run.max_failures`.
    """
    run = recipe.run
    filesystem, path = pyarrow_filesystem(stream.run_uri)
    # local mode takes the dataset itself, a worker group asks IngestConfig
    dataset: Any = partial(remaining, stream, world_size=1) if placement.workers[1] == 0 else _placeholder
    told = reporting.callbacks if reporting else ()
    reports = reporting is not None
    job = Job(recipe=recipe, gpu=placement.gpu, stream=stream, start_uri=start_uri, mailbox=mailbox, reports=reports)
    trainer = (_TrialTrainer if reports else _Trainer)(
        train_worker,  # type: ignore[arg-type]  # what rank 0 returns is the run's result
        train_loop_config={"job": job},
        torch_config=NodeAddress(mailbox=mailbox),
        scaling_config=ray.train.ScalingConfig(
            num_workers=_num_workers(placement.workers),
            placement_strategy="PACK" if placement.gpu else "SPREAD",  # GPUs want each other near, data tasks CPUs
            use_gpu=placement.gpu,
            resources_per_worker=placement.per_worker,
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
            callbacks=[_Failures(mailbox), *told],  # type: ignore[list-item]  # annotated as Tune's, which Train refuses
        ),
        datasets={} if recipe.data.device_cache else {"train": dataset},
        dataset_config=IngestConfig(stream),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        cause: Cause = trainer.fit().return_value  # type: ignore[attr-defined]  # annotated as Train V1's
    except Exception as error:
        found = user_error(error) or of_worker(error)
        if found is None:
            raise
        raise found from None
    return cause


def _num_workers(workers: tuple[int, int]) -> Any:
    """A number, or the range of an elastic run."""
    least, most = workers
    return most if least == most else workers


def _placeholder() -> None:
    """Train wants a dataset by name; `IngestConfig.configure` makes it."""
