"""Checkpoints of a training worker: copied on their device between two steps, fetched, written and committed
behind the next ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from infra.errors import UserError
from infra.records import Record
from pipelines.bad_samples import BadSamples
from pipelines.checkpoint import INPUTS, LEDGER, MEAN_IMAGE, RECORDS, SCORED, Checkpoint, RunFolder
from pipelines.data.ledger import Ledger
from pipelines.data.quarantine import QUARANTINE
from pipelines.feed import Feed
from pipelines.recipe import Recipe
from resnet_core.collective import gather_rows
from resnet_core.evaluation import EvalSums, Mistakes
from resnet_core.evaluation.exact import MATRIX_CLASSES
from resnet_core.state import Frozen, TrainState


@dataclass(kw_only=True)
class Sink:
    """`CheckpointSink` of one worker; rank 0 writes, the others contribute what they have consumed."""

    rank: int
    feed: Feed
    folder: RunFolder
    recipe: Recipe
    data_digest: str
    ledger: Ledger
    split_start: int
    history: list[Record]
    bad: BadSamples
    mean_image: npt.NDArray[np.float32] | None = None
    """What the network's inputs are taken from, H x W x 3, if it is an image."""
    scored: dict[str, npt.NDArray[np.generic]] | None = None
    """Details of the latest evaluation, for the save that follows it."""

    def __post_init__(self) -> None:
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def save(self, state: TrainState, metrics: Mapping[str, float] | None) -> None:
        marks = gather_rows(torch.from_numpy(self.feed.drain_marks())).numpy()
        with self._reported():
            quarantine = self.bad.exchange()
        if self.rank != 0:
            return
        self._mark(marks)
        self.wait()
        checkpoint = self._checkpoint(state, metrics or {}, {QUARANTINE: quarantine} if quarantine else {})
        self._under_way = self._writer.submit(self._write, checkpoint, state.frozen())

    def watch(self) -> None:
        """Tell what data tasks had to tell since the last call; UserError if too many samples are bad."""
        for warning in self.feed.drain_warnings():
            self.bad.tell(warning)
        with self._reported():
            self.bad.take(self.feed.drain_bad())

    def wait(self) -> None:
        """Until the last save is committed; raises what went wrong with it."""
        if self._under_way:
            self._under_way.result()
            self._under_way = None

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """If there are too many bad samples, the report names them all."""
        try:
            yield
        except UserError:
            self.wait()  # for an older report
            self.bad.report()
            raise

    def _write(self, checkpoint: Checkpoint, frozen: Frozen) -> None:
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
        if metrics and self.scored:
            files[SCORED] = save_arrays(self.scored)
        if self.mean_image is not None:
            files[INPUTS] = save_arrays({MEAN_IMAGE: self.mean_image})
        files[LEDGER] = save_arrays(self.ledger.to_arrays())
        files[RECORDS] = "".join(record.to_json() + "\n" for record in self.history).encode()
        files["recipe.toml"] = self.recipe.to_toml().encode()
        return Checkpoint(
            step=state.step,
            metrics={f"{self.recipe.data.held_out}/{name}": value for name, value in metrics.items()},
            recipe=self.recipe.flat(),
            data_digest=self.data_digest,
            files=files,
        )


def details(sums: EvalSums, mistakes: Mistakes) -> dict[str, npt.NDArray[np.generic]]:
    """What the plots of an evaluation are made of: as large as the pictures, whatever the number of classes.

    `confusion` [label, predicted] up to `MATRIX_CLASSES` classes; of more, `pairs` [pair, (label, predicted, images)].
    """
    few = sums.num_classes <= MATRIX_CLASSES
    counts = {"confusion": sums.confusion} if few else {"pairs": sums.pairs}
    return {
        **{name: values.to("cpu", torch.int32).numpy() for name, values in counts.items()},
        "images": mistakes.images_NHWC.cpu().numpy(),
        "labels": mistakes.labels_N.cpu().numpy(),
        "predicted": mistakes.predicted_N.cpu().numpy(),
        "probability": mistakes.probability_N.float().cpu().numpy(),
    }
