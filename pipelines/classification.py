"""Classification at scale: a pool of actors through Ray Data, each of which has the model.

Shapes: n images, S side of the model's input, K classes, T of them the most probable ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.capacity import ingest_options
from infra.mlflow_client import Tracking
from infra.registry import load
from pipelines.data.decode import CropConfig
from pipelines.data.execution import quiet, within
from pipelines.data.prediction_files import Job, Layout
from pipelines.data.task import Block
from pipelines.data.unlabelled.images import Images, decoded
from pipelines.scoring import Predict

if TYPE_CHECKING:
    import ray.data

_ROWS = 64  # that go through the model at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """What is to be classified, and by what."""

    images: Images
    tracking: Tracking
    model_uri: str  # models:/NAME/VERSION: a name without an alias, so that every actor loads the same
    crop: CropConfig
    top: int
    all_probabilities: bool
    file_rows: int  # predictions in a file, about
    actors: int  # copies of the model at most, one CPU each

    def job(self, model_sha256: str) -> Job:
        """What a second start has to have in common with this one."""
        return Job(
            model=self.model_uri,
            model_sha256=model_sha256,
            images=self.images.description,
            images_fingerprint=self.images.fingerprint,
            top=self.top,
            all_probabilities=self.all_probabilities,
            file_rows=self.file_rows,
        )


def classify(wanted: Classification, layout: Layout, files: Sequence[int]) -> Iterator[Block]:
    """The predictions for some files, in any order, as `Collector.add` takes them."""
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

    rows = [{"file": file, "part": place} for file in files for place in range(len(layout.files[file]))]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Classifier,
        fn_constructor_args=(wanted, layout),
        batch_size=None,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=wanted.actors),
        **ingest_options(),
    )
    dataset.context.raise_original_map_exception = True
    return within(quiet(dataset))


class _Classifier:
    """An actor: it has loaded and verified the model once, and reads, decodes and classifies part after part.

    All in one place, so that no pixels travel: the model runs on a CPU, as decoding does, and nothing would be idle.
    """

    def __init__(self, wanted: Classification, layout: Layout) -> None:
        self._wanted, self._layout = wanted, layout
        self._model = load(wanted.tracking, wanted.model_uri)

    def __call__(self, batch: dict[str, Any]) -> Iterator[Block]:
        wanted = self._wanted
        for file, place in zip(batch["file"].tolist(), batch["part"].tolist(), strict=True):
            for block in decoded(wanted.images, self._layout.files[file][place], wanted.crop, _ROWS):
                found = predictions(
                    block, self._model.predict, top=wanted.top, all_probabilities=wanted.all_probabilities
                )
                yield {**found, "file": np.full(len(block["id"]), file, dtype=np.int32)}
