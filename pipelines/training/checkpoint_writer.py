"""Checkpoints of a training worker: copied on the device between two steps, then written during the next steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from infra.errors import UserError
from infra.retry import take_retries
from infra.tracking.metric_point import MetricPoint
from pipelines.checkpoint import INPUTS, LEDGER, MEAN_IMAGE, RECORDS, SCORED, Checkpoint, RunFolder
from pipelines.config.recipe import Recipe
from pipelines.data.order.ledger import Ledger
from pipelines.data.shards.bad_records import QUARANTINE
from pipelines.training.bad_samples import BadSamples
from pipelines.training.batches import RankBatches
from resnet_core.distributed import gather_rows
from resnet_core.evaluation import Mistakes
from resnet_core.evaluation.exact import ScoreSums
from resnet_core.loop import Evaluation
from resnet_core.state import Frozen, TrainState


@dataclass(kw_only=True)
class CheckpointWriter:
    """`CheckpointSink` of one worker. Rank 0 writes; the other ranks send the samples that they trained on."""

    rank: int
    batches: RankBatches
    folder: RunFolder
    recipe: Recipe
    data_digest: str
    ledger: Ledger
    split_start: int
    history: list[MetricPoint]
    bad: BadSamples
    say: Callable[[str], None] = lambda text: None
    """Prints a line on the driver's terminal."""
    slow_after_s: float = 30.0
    """Seconds after which a checkpoint that is still being written is reported."""
    mean_image: npt.NDArray[np.float32] | None = None
    """Mean image to subtract from the network's inputs, H x W x 3; None if there is none."""

    def __post_init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._timing: dict[str, float] = {}

    def save(self, state: TrainState, evaluation: Evaluation | None) -> None:
        marks = gather_rows(torch.from_numpy(self.batches.drain_marks())).numpy()
        with self._reported():
            quarantine = self.bad.exchange()
        if self.rank != 0:
            return
        self._mark(marks)
        self.wait()
        files = {QUARANTINE: quarantine} if quarantine else {}
        if evaluation is not None and evaluation.details:
            files[SCORED] = saved(evaluation.details)
        checkpoint = self._checkpoint(state, evaluation.metrics if evaluation else {}, files)
        self._pending = self._executor.submit(self._write, checkpoint, state.frozen())

    def watch(self) -> None:
        """Report the new warnings and bad samples of data tasks; raise UserError if too many samples are bad."""
        for warning in self.batches.drain_warnings():
            self.bad.tell(warning)
        with self._reported():
            self.bad.take(self.batches.drain_bad())

    def take_timing(self) -> dict[str, float]:
        """Return checkpoint/seconds and checkpoint/retries of the last committed save; each save is returned once."""
        timing, self._timing = self._timing, {}
        return timing

    def wait(self) -> None:
        """Wait until the last save is committed; raise the error if it failed."""
        if self._pending:
            self._pending.result()
            self._pending = None

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Write a report of all bad samples if the block finds too many of them."""
        try:
            yield
        except UserError:
            self.wait()  # a save under way would overwrite the report with an older one
            self.bad.report()
            raise

    def _write(self, checkpoint: Checkpoint, frozen: Frozen) -> None:
        take_retries()  # retries from before the checkpoint do not count
        began = time.monotonic()
        slow = threading.Timer(self.slow_after_s, self._report_slow, (checkpoint.step,))
        slow.daemon = True
        slow.start()
        try:
            self._commit(checkpoint, frozen)
        finally:
            slow.cancel()
        seconds = time.monotonic() - began
        self._timing = {"checkpoint/seconds": seconds, "checkpoint/retries": float(take_retries())}
        if seconds > self.slow_after_s:
            self.say(f"the checkpoint of step {checkpoint.step} was written after {seconds:.0f} s")

    def _report_slow(self, step: int) -> None:
        where = self.folder.store.description
        self.say(
            f"the checkpoint of step {step} is still not written after {self.slow_after_s:.0f} s: {where} is slow or "
            "unreachable; training will wait for it at the next checkpoint"
        )

    def _commit(self, checkpoint: Checkpoint, frozen: Frozen) -> None:
        groups = frozen.to_host().items()
        files = {f"{name}.safetensors": save_tensors(tensors) for name, tensors in groups if tensors}
        checkpoint = replace(checkpoint, files={**checkpoint.files, **files})
        self.folder.write(checkpoint, keep_best=self.recipe.run.keep_best)
        if QUARANTINE in checkpoint.files:
            self.folder.store.write(QUARANTINE, checkpoint.files[QUARANTINE])

    def _mark(self, marks: npt.NDArray[np.int64]) -> None:
        for epoch in np.unique(marks[:, 0]).tolist():
            self.ledger.mark(epoch, marks[marks[:, 0] == epoch, 1] - self.split_start)

    def _checkpoint(self, state: TrainState, metrics: Mapping[str, float], files: Mapping[str, bytes]) -> Checkpoint:
        """Return the checkpoint without the state's tensors."""
        files = dict(files)
        if self.mean_image is not None:
            files[INPUTS] = saved({MEAN_IMAGE: self.mean_image})
        files[LEDGER] = saved(self.ledger.to_arrays())
        files[RECORDS] = "".join(record.to_json() + "\n" for record in self.history).encode()
        files["recipe.toml"] = self.recipe.to_toml().encode()
        return Checkpoint(
            step=state.step,
            metrics={f"{self.recipe.data.held_out}/{name}": value for name, value in metrics.items()},
            recipe=self.recipe.flat(),
            data_digest=self.data_digest,
            files=files,
        )


def saved(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """Return arrays as a safetensors file.

    The library writes the memory of an array from its first element on, so a view with strides needs a copy first.
    """
    return save_arrays({name: np.asarray(values, order="C") for name, values in arrays.items()})


def details(sums: ScoreSums, mistakes: Mistakes) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays that an evaluation's plots need. They stay small for any number of classes."""
    return {
        **{name: values.numpy() for name, values in sums.details().items()},
        "images": mistakes.images_NHWC.cpu().numpy(),
        "labels": mistakes.labels_N.cpu().numpy(),
        "predicted": mistakes.predicted_N.cpu().numpy(),
        "probability": mistakes.probability_N.float().cpu().numpy(),
    }
