"""Classification at scale: Ray Data runs a pool of actors, and each actor has a copy of the model.

On CPUs an actor reads, decodes and classifies, so no pixels move between processes. For actors that hold a GPU, tasks
on CPUs read and decode. The driver fetches the model from MLflow and passes it to the actors, because workers of a
cluster cannot reach MLflow.

Shapes: n images, S side of the model's input, K classes, T most probable classes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.capacity import cluster_total, ingest_options
from infra.registry.versions import ModelFiles
from pipelines.config.crop import CropConfig
from pipelines.data.tasks.crops import Block
from pipelines.data.tasks.ray_tasks import limited, quiet
from pipelines.evaluation.placement import HERE, InferencePlacement, enough_memory
from pipelines.evaluation.scoring import Predict
from pipelines.inference.output_files import Layout, PredictionJob
from pipelines.inference.sources.images import Images, decoded

if TYPE_CHECKING:
    import ray
    import ray.data

_ROWS = 64  # images decoded at once; on a CPU also classified at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """Settings of a classification: images, model, outputs and placement."""

    images: Images
    model: ModelFiles
    top: int
    all_probabilities: bool
    file_rows: int  # approximate predictions per file
    actors: int  # maximum number of copies of the model, each with one CPU or one GPU
    choice: InferencePlacement = HERE

    def job(self) -> PredictionJob:
        """Return what a command that resumes must have in common with this one; CPUs or GPUs may differ."""
        return PredictionJob(
            model=self.model.version.uri,
            model_sha256=self.model.version.tags["checkpoint_sha256"],
            images=self.images.description,
            images_fingerprint=self.images.fingerprint,
            top=self.top,
            all_probabilities=self.all_probabilities,
            file_rows=self.file_rows,
        )


def classify(wanted: Classification, layout: Layout, files: Sequence[int]) -> Iterator[Block]:
    """Yield the predictions for some files, in any order, as `Collector.add` takes them.

    Raises:
        UserError: a part of the source is lost, or torch sees no GPU although Ray has assigned one.
    """
    yield from _stream(wanted, layout, files).iter_batches(batch_size=None, batch_format="numpy")


def predictions(
    block: Block, predict: Predict, *, top: int, all_probabilities: bool, thresholds: Sequence[float] = ()
) -> Block:
    """Classify a block of images (`pipelines.inference.sources.images.decoded`).

    Returns:
        The block's columns without `image`, top_class int32 [n,T] and top_probability float32 [n,T], the most probable
        class first, and probabilities float32 [n,K] if `all_probabilities`. A multi-label model has `thresholds` [K]:
        reached bool [n,K] then says which classes are at least as probable as theirs. Rows with a reason have zeros.
    """
    good = np.flatnonzero(block["reason"] == "")
    images = block["image"].astype(np.uint8, copy=False)
    found = predict(images[good]) if len(good) else predict(images[:1])[:0]
    order = np.argsort(-found, axis=1, kind="stable")[:, :top]
    count = len(block["id"])
    columns = {
        "top_class": np.zeros((count, order.shape[1]), dtype=np.int32),
        "top_probability": np.zeros((count, order.shape[1]), dtype=np.float32),
    }
    columns["top_class"][good] = order
    columns["top_probability"][good] = np.take_along_axis(found, order, axis=1)
    if thresholds:
        columns["reached"] = np.zeros((count, found.shape[1]), dtype=bool)
        columns["reached"][good] = found >= np.array(thresholds)
    if all_probabilities:
        columns["probabilities"] = np.zeros((count, found.shape[1]), dtype=np.float32)
        columns["probabilities"][good] = found
    return {**{name: values for name, values in block.items() if name != "image"}, **columns}


def _stream(wanted: Classification, layout: Layout, files: Sequence[int]) -> ray.data.Dataset:
    import ray.data

    crop = CropConfig.of_shown(wanted.model.metadata)
    reader = _Reader(images=wanted.images, layout=layout, metadata=wanted.model.metadata)
    predictor = _Predictor(
        model=ray.put(wanted.model),
        placement=wanted.choice,
        top=wanted.top,
        all_probabilities=wanted.all_probabilities,
        thresholds=tuple(wanted.model.metadata.get("thresholds", ())),
    )
    rows = [{"file": file, "part": part} for file in files for part in range(len(layout.files[file]))]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if wanted.choice.gpu:
        gpus = min(wanted.actors, max(1, cluster_total("GPU")))
        dataset = dataset.map_batches(reader, batch_size=None, num_cpus=1, **ingest_options()).map_batches(
            _OnGpu,
            fn_constructor_args=(predictor,),
            batch_size=wanted.choice.limit.rows_at(crop.image_size**2),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gpus),
            **wanted.choice.options,
        )
    else:
        gpus = 0
        dataset = dataset.map_batches(
            _OnCpu,
            fn_constructor_args=(reader, predictor),
            batch_size=None,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=wanted.actors),
            **ingest_options(),
        )
    dataset.context.raise_original_map_exception = True
    return limited(quiet(dataset), gpus=gpus)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """Function of a data task or actor that reads and decodes parts of files."""

    images: Images
    layout: Layout
    metadata: Mapping[str, Any]  # of the model

    def __call__(self, batch: dict[str, Any]) -> Iterator[Block]:
        for file, part in zip(batch["file"].tolist(), batch["part"].tolist(), strict=True):
            for block in decoded(self.images, self.layout.files[file][part], self.metadata, _ROWS):
                yield {**block, "file": np.full(len(block["id"]), file, dtype=np.int32)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Predictor:
    """The model and the settings that an actor needs to classify decoded images."""

    model: ray.ObjectRef[ModelFiles]
    placement: InferencePlacement
    top: int
    all_probabilities: bool
    thresholds: tuple[float, ...]  # of a multi-label model

    def open(self) -> Predict:
        """Load the model on the device of this actor."""
        import ray

        return ray.get(self.model).open(self.placement.device()).predict

    def classify(self, block: Block, predict: Predict) -> Iterator[Block]:
        """Yield the predictions for a block, for the rows of one forward pass at a time."""
        limit = self.placement.limit.rows_of(block)
        for begin in range(0, len(block["id"]), limit):
            rows = {name: values[begin : begin + limit] for name, values in block.items()}
            with enough_memory(self.placement.setting):
                found = predictions(
                    rows,
                    predict,
                    top=self.top,
                    all_probabilities=self.all_probabilities,
                    thresholds=self.thresholds,
                )
            yield found


class _OnCpu:
    """Actor that loads the model once, and then reads, decodes and classifies one part after another."""

    def __init__(self, reader: _Reader, predictor: _Predictor) -> None:
        self._reader, self._predictor = reader, predictor
        self._predict = predictor.open()

    def __call__(self, batch: dict[str, Any]) -> Iterator[Block]:
        for block in self._reader(batch):
            yield from self._predictor.classify(block, self._predict)


class _OnGpu:
    """Actor that loads the model on its GPU once, and then classifies blocks that tasks have decoded."""

    def __init__(self, predictor: _Predictor) -> None:
        self._predictor = predictor
        self._predict = predictor.open()

    def __call__(self, block: Block) -> Iterator[Block]:
        yield from self._predictor.classify(block, self._predict)


_STDERR = 2
_JOIN_TIMEOUT_S = 5.0  # a process that was started meanwhile may keep the pipe open


@contextmanager
def left_out(mark: bytes) -> Iterator[None]:
    """Drop stderr's lines that contain `mark` until the block ends. Forward all other lines, each line whole."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    reader, writer = os.pipe()
    os.dup2(writer, _STDERR)
    os.close(writer)
    thread = threading.Thread(target=_forward, args=(reader, kept, mark), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, _STDERR)  # closes this process's end of the pipe, so the thread ends
        thread.join(_JOIN_TIMEOUT_S)
        if not thread.is_alive():
            os.close(kept)


def _forward(reader: int, kept: int, mark: bytes) -> None:
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            if mark not in line:
                os.write(kept, line)
