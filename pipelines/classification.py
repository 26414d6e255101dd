"""Classification at scale: a pool of actors through Ray Data, each of which has the model.

On CPUs an actor reads, decodes and classifies, so that no pixels travel. For actors that hold a GPU, tasks on CPUs read
and decode. The driver asks MLflow for the model and hands it to the actors: workers of a cluster do not reach MLflow.

Shapes: n images, S side of the model's input, K classes, T of them the most probable ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.capacity import ingest_options, most_of
from infra.registry import ModelFiles
from pipelines.data.decode import CropConfig
from pipelines.data.execution import quiet, within
from pipelines.data.prediction_files import Job, Layout
from pipelines.data.task import Block
from pipelines.data.unlabelled.images import Images, decoded
from pipelines.inference import HERE, Choice, enough_memory
from pipelines.scoring import Predict

if TYPE_CHECKING:
    import ray
    import ray.data

_ROWS = 64  # decoded at once; on a CPU also classified at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """What is to be classified, and by what."""

    images: Images
    model: ModelFiles
    top: int
    all_probabilities: bool
    file_rows: int  # predictions in a file, about
    actors: int  # copies of the model at most: one CPU each, or one GPU
    choice: Choice = HERE

    def job(self) -> Job:
        """What a second start has to have in common with this one; CPUs or GPUs may differ."""
        return Job(
            model=self.model.version.uri,
            model_sha256=self.model.version.tags["checkpoint_sha256"],
            images=self.images.description,
            images_fingerprint=self.images.fingerprint,
            top=self.top,
            all_probabilities=self.all_probabilities,
            file_rows=self.file_rows,
        )


def classify(wanted: Classification, layout: Layout, files: Sequence[int]) -> Iterator[Block]:
    """The predictions for some files, in any order, as `Collector.add` takes them.

    Raises:
        UserError: a part of the source is lost, or torch sees no GPU where Ray has assigned one.
    """
    yield from _stream(wanted, layout, files).iter_batches(batch_size=None, batch_format="numpy")


def predictions(block: Block, predict: Predict, *, top: int, all_probabilities: bool) -> Block:
    """The columns of a block of images (`unlabelled.images.decoded`) without `image`, and what the model says.

    Returns:
        Also top_class int32 [n,T] and top_probability float32 [n,T], the most probable first; and probabilities
        float32 [n,K] if asked for. Rows with a reason have zeros.
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
    if all_probabilities:
        columns["probabilities"] = np.zeros((count, found.shape[1]), dtype=np.float32)
        columns["probabilities"][good] = found
    return {**{name: values for name, values in block.items() if name != "image"}, **columns}


def _stream(wanted: Classification, layout: Layout, files: Sequence[int]) -> ray.data.Dataset:
    import ray.data

    crop = CropConfig.of_shown(wanted.model.metadata)
    reader = _Reader(images=wanted.images, layout=layout, crop=crop)
    answerer = _Answerer(
        model=ray.put(wanted.model), choice=wanted.choice, top=wanted.top, all_probabilities=wanted.all_probabilities
    )
    rows = [{"file": file, "part": place} for file in files for place in range(len(layout.files[file]))]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if wanted.choice.gpu:
        gpus = min(wanted.actors, max(1, most_of("GPU")))
        dataset = dataset.map_batches(reader, batch_size=None, num_cpus=1, **ingest_options()).map_batches(
            _OnGpu,
            fn_constructor_args=(answerer,),
            batch_size=wanted.choice.limit.rows_at(crop.image_size**2),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gpus),
            **wanted.choice.options,
        )
    else:
        gpus = 0
        dataset = dataset.map_batches(
            _OnCpu,
            fn_constructor_args=(reader, answerer),
            batch_size=None,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=wanted.actors),
            **ingest_options(),
        )
    dataset.context.raise_original_map_exception = True
    return within(quiet(dataset), gpus=gpus)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """Reads and decodes parts of files."""

    images: Images
    layout: Layout
    crop: CropConfig

    def __call__(self, batch: dict[str, Any]) -> Iterator[Block]:
        for file, place in zip(batch["file"].tolist(), batch["part"].tolist(), strict=True):
            for block in decoded(self.images, self.layout.files[file][place], self.crop, _ROWS):
                yield {**block, "file": np.full(len(block["id"]), file, dtype=np.int32)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answerer:
    """What an actor needs to classify what is decoded."""

    model: ray.ObjectRef[ModelFiles]
    choice: Choice
    top: int
    all_probabilities: bool

    def open(self) -> Predict:
        """Load the model on the device of this actor."""
        import ray

        return ray.get(self.model).open(self.choice.device()).predict

    def answer(self, block: Block, predict: Predict) -> Iterator[Block]:
        """Yield the predictions for a block, for as many rows at a time as go through the model at once."""
        limit = self.choice.limit.rows_of(block)
        for begin in range(0, len(block["id"]), limit):
            rows = {name: values[begin : begin + limit] for name, values in block.items()}
            with enough_memory(self.choice.setting):
                found = predictions(rows, predict, top=self.top, all_probabilities=self.all_probabilities)
            yield found


class _OnCpu:
    """An actor that has loaded the model once, and reads, decodes and classifies part after part."""

    def __init__(self, reader: _Reader, answerer: _Answerer) -> None:
        self._reader, self._answerer = reader, answerer
        self._predict = answerer.open()

    def __call__(self, batch: dict[str, Any]) -> Iterator[Block]:
        for block in self._reader(batch):
            yield from self._answerer.answer(block, self._predict)


class _OnGpu:
    """An actor that has loaded the model on its GPU once, and classifies what tasks have decoded."""

    def __init__(self, answerer: _Answerer) -> None:
        self._answerer = answerer
        self._predict = answerer.open()

    def __call__(self, block: Block) -> Iterator[Block]:
        yield from self._answerer.answer(block, self._predict)
