"""Exact scoring of a whole split: every sample once, in id order, through plain Ray tasks.

Not through Ray Data: its equal split drops tail rows, and a static split by rank needs no coordinator. The tasks load
this module, so it imports no torch.

Shapes: B images, S pixels a side, K classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from infra.gate import Score
from infra.storage import Store
from pipelines.data.decode import CropConfig
from pipelines.data.manifest import Manifest
from pipelines.data.plan import WorkItem, eval_items, rows_within
from pipelines.data.task import Block, TaskConfig, load_item

if TYPE_CHECKING:
    import ray
    import torch

    from resnet_core.evaluate import EvalBatch

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""uint8 B x S x S x 3 to probabilities B x K."""

_ITEM_BYTES = 16 * 2**20  # decoded: hides the cost of a task, and a few in flight fit into any memory
_ITEM_ROWS = (64, 4096)  # bounds of it, whatever the size of the images
_PREDICT_ROWS = 128  # activations of one forward pass stay below a gigabyte on a CPU
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)  # of a class that a softmax rounded to zero


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalData:
    """One rank's share of a split."""

    store: Store
    """Root of the data set."""
    manifest: Manifest
    crop: CropConfig
    """Its `image_size` and `eval_resize` count; at the size that the model takes."""
    split: str = "test"
    rank: int = 0
    world_size: int = 1
    window: int = 3
    """Tasks in flight, finished ones included: bounds what waits in the object store."""

    @property
    def item_rows(self) -> int:
        """About how many rows one task decodes."""
        return rows_within(_ITEM_BYTES, self.crop.image_size, least=_ITEM_ROWS[0], most=_ITEM_ROWS[1])

    def items(self, item_rows: int) -> list[WorkItem]:
        """This rank's work. Raises UserError where the data set has no such split."""
        size = self.crop.image_size
        return eval_items(self.manifest, self.split, self.rank, self.world_size, image_size=size, item_rows=item_rows)

    def load(self, item: WorkItem, rows_per_block: int) -> Iterator[Block]:
        """What the task of an item does."""
        config = TaskConfig(crop=self.crop.at(self.crop.image_size), train=False, seed=0, rows_per_block=rows_per_block)
        return load_item(self.store, self.manifest, item, config)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitScore(Score):
    """What a model scored on a whole split, as the gate compares it and as people read it."""

    top5_accuracy: float  # 0 to 1


def score_blocks(data: EvalData) -> Iterator[Block]:
    """This rank's samples as blocks of numpy columns (`pipelines.data.task.load_item`), in id order.

    Each item is loaded by a Ray task, `data.window` of them at a time, or in this process where Ray is not running.

    Raises:
        UserError: the data set has no such split, a shard is missing or damaged, or an image does not decode.
    """
    import ray

    items, rows = data.items(data.item_rows), data.item_rows
    if not ray.is_initialized():
        for item in items:
            yield from data.load(item, rows)
        return
    load, shared = ray.remote(num_cpus=1)(_load), ray.put(data)
    flying: deque[ray.ObjectRef[list[Block]]] = deque()
    for item in items:
        if len(flying) == data.window:
            yield from _result(flying.popleft())
        flying.append(load.remote(shared, item, rows))
    while flying:
        yield from _result(flying.popleft())


def eval_batches(data: EvalData, device: torch.device, batch_size: int) -> Iterator[EvalBatch]:
    """This rank's samples as batches of at most `batch_size` images on the device, for `resnet_core.evaluate`."""
    import torch

    from resnet_core.evaluate import EvalBatch

    for block in _split(data, batch_size):
        yield EvalBatch(  # torch.tensor copies: blocks from the object store cannot be written to
            images_BHWC=torch.tensor(block["image"], device=device),
            labels_B=torch.tensor(block["label"], device=device),
            ids_B=torch.tensor(block["id"], device=device),
        )


def score_model(predict: Predict, data: EvalData) -> SplitScore:
    """Score whatever answers with probabilities, such as a registered model, with the same sums as training does.

    A probability that was rounded to zero counts as the least normal float32, a loss of 87.3.
    """
    import torch

    from resnet_core.evaluate import EvalSums

    sums = EvalSums(len(data.manifest.class_names), torch.device("cpu"))
    for block in _split(data, _PREDICT_ROWS):
        probabilities = torch.from_numpy(predict(np.array(block["image"], dtype=np.uint8)))
        sums.update(probabilities.clamp(min=_LEAST_PROBABILITY).log(), torch.tensor(block["label"]))
    return SplitScore(count=int(sums.count), data_digest=data.manifest.digest, **sums.metrics())


def example_images(data: EvalData, count: int) -> npt.NDArray[np.uint8]:
    """The first `count` images of the share, uint8 count x S x S x 3; a smaller split is repeated."""
    block = next(data.load(data.items(item_rows=1)[0], rows_per_block=count))
    images: npt.NDArray[np.uint8] = block["image"][np.arange(count) % len(block["image"])].astype(np.uint8)
    return images


def _split(data: EvalData, rows: int) -> Iterator[Block]:
    for block in score_blocks(data):
        for begin in range(0, len(block["id"]), rows):
            yield {name: column[begin : begin + rows] for name, column in block.items()}


def _load(data: EvalData, item: WorkItem, rows: int) -> list[Block]:
    return list(data.load(item, rows))


def _result(reference: ray.ObjectRef[list[Block]]) -> list[Block]:
    """A task's blocks; what a user can put right is told as it is, not as the traceback of a task."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
