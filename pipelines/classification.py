"""Classification at scale through Ray Data: tasks read and decode, a pool of actors holds the model.

Shapes: n images, S side of the model's input, K classes, T of them the most probable ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.mlflow_client import Tracking
from infra.registry import LoadedModel, load
from pipelines.data.decode import CropConfig
from pipelines.data.plan import rows_within
from pipelines.data.predictions import Job, Layout
from pipelines.data.quiet import quiet
from pipelines.data.task import Block
from pipelines.data.unlabelled.images import Images, decoded
from pipelines.scoring import Predict

if TYPE_CHECKING:
    import ray.data

_BLOCK_BYTES = 8 * 2**20  # of pixels
_PREDICT_ROWS = 64


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

    @property
    def block_rows(self) -> int:
        """Images that travel together."""
        return rows_within(_BLOCK_BYTES, self.crop.image_size, least=16, most=1024)

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
    parts = [predict(images[good[begin : begin + _PREDICT_ROWS]]) for begin in range(0, len(good), _PREDICT_ROWS)]
    found = np.concatenate(parts) if parts else predict(images[:1])[:0]
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
    import ray
    import ray.data

    shared = ray.put(wanted.images)

    def read(batch: dict[str, Any]) -> Iterator[Block]:
        images: Images = ray.get(shared)
        for file, place in zip(batch["file"].tolist(), batch["part"].tolist(), strict=True):
            for block in decoded(images, layout.files[file][place], wanted.crop, wanted.block_rows):
                yield {**block, "file": np.full(len(block["id"]), file, dtype=np.int32)}

    rows = [{"file": file, "part": place} for file in files for place in range(len(layout.files[file]))]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(read, batch_size=None, num_cpus=1)
    dataset = dataset.map_batches(
        _Classifier,
        fn_constructor_args=(wanted.tracking, wanted.model_uri, wanted.top, wanted.all_probabilities),
        batch_size=None,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=wanted.actors),
    )
    dataset.context.target_max_block_size = _BLOCK_BYTES * 3 // 4  # Ray cuts what is half as large again
    dataset.context.raise_original_map_exception = True
    return quiet(dataset)


class _Classifier:
    """An actor: the model is loaded and verified once."""

    def __init__(self, tracking: Tracking, model_uri: str, top: int, all_probabilities: bool) -> None:
        self._model: LoadedModel = load(tracking, model_uri)
        self._top, self._all_probabilities = top, all_probabilities

    def __call__(self, block: Block) -> Block:
        return predictions(block, self._model.predict, top=self._top, all_probabilities=self._all_probabilities)
