"""One `fit()` of Ray Train: it starts and restarts the workers, and raises their own errors."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.torch import TorchTrainer

from infra.errors import user_error
from infra.storage import pyarrow_filesystem
from pipelines.config.recipe import Recipe
from pipelines.ray_internals.train import LeaveAtOnce, PlacementGroupCleanerCallback
from pipelines.training.errors import Repeats, final_error, worker_error
from pipelines.training.messages import Event, SendWarning
from pipelines.training.placement import Placement
from pipelines.training.preemption import StopReason
from pipelines.training.process_group import NodeAddress
from pipelines.training.start_weights import StartWeights
from pipelines.training.stream import IngestConfig, Stream, placeholder, remaining
from pipelines.training.trial_reporting import Reporting
from pipelines.training.worker import WorkerJob, train_worker

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class _Failures(ray.train.UserCallback):
    """Callback of Train's controller: a UserError or a repeated error ends the run; others are reported and retried."""

    def __init__(self, queue: ActorHandle[Any]) -> None:
        self._queue = queue
        self._repeats = Repeats()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            found = user_error(error)
            if found is not None:
                raise found  # Train does not retry an error of its controller
        repeated = self._repeats.find(worker_exceptions)
        if repeated is not None:
            raise final_error(repeated)
        rank, error = next(iter(worker_exceptions.items()))
        text = f"worker {rank} failed ({type(error).__name__}): resuming from the last checkpoint"
        self._queue.put.remote(Event(text=text, training=False))


class _Trainer(TorchTrainer):
    """Trainer that leaves Ctrl-C and placement groups to this project.

    Train's handler of Ctrl-C kills the workers without a checkpoint; `preemption.stop_on_signals` replaces it. Train's
    cleaner of placement groups is a detached actor that asks the dashboard whether its controller lives. Without a
    dashboard it gets no answer: it outlives a stopped trial, and each run waits 12 seconds for it at its end. Ray
    itself frees the groups of a job that has ended; a study frees those of its trials
    (`pipelines/tuning/placement_groups.py`).
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        """Keep the current handler."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # Train V2, by a switch
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]


def launch(
    recipe: Recipe,
    placement: Placement,
    stream: Stream,
    start: StartWeights | None,
    queue: ActorHandle[Any],
    reporting: Reporting | None = None,
) -> StopReason:
    """Run all workers to the last step, or until they stop early; return the reason.

    Raises:
        UserError: a worker or a data task raised one.
        Exception: a worker raised this error twice in a row at the same step.
        ray.train.TrainingFailedError: more failures than `run.max_failures`.
    """
    run = recipe.run
    filesystem, path = pyarrow_filesystem(stream.run_uri)
    # local mode takes the dataset itself; a worker group gets it from IngestConfig
    warn = SendWarning(queue)
    dataset: Any = partial(remaining, stream, world_size=1, warn=warn) if placement.workers[1] == 0 else placeholder
    callbacks = reporting.callbacks if reporting else ()
    reports = reporting is not None
    job = WorkerJob(recipe=recipe, gpu=placement.gpu, stream=stream, start=start, mailbox=queue, reports=reports)
    trainer = _Trainer(
        train_worker,  # type: ignore[arg-type]  # what rank 0 returns is the run's result
        train_loop_config={"job": job},
        torch_config=NodeAddress(mailbox=queue),
        scaling_config=ray.train.ScalingConfig(
            num_workers=_num_workers(placement.workers),
            placement_strategy="PACK" if placement.gpu else "SPREAD",  # data tasks then find CPUs on all nodes
            use_gpu=placement.gpu,
            resources_per_worker=placement.per_worker,
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
            callbacks=[_Failures(queue), LeaveAtOnce(), *callbacks],  # type: ignore[list-item]  # annotated as Tune's
        ),
        datasets={} if recipe.data.device_cache else {"train": dataset},
        dataset_config=IngestConfig(stream, warn),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        cause: StopReason = trainer.fit().return_value  # type: ignore[attr-defined]  # annotated as Train V1's
    except Exception as error:
        found = user_error(error) or worker_error(error)
        if found is None:
            raise
        raise found from None
    return cause


def _num_workers(workers: tuple[int, int]) -> Any:
    """Return a number, or the range of an elastic run."""
    least, most = workers
    return most if least == most else workers
