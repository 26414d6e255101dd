"""Score a whole split exactly: every sample once, with one or more test-time crops, through plain Ray tasks.

Ray Data is not used: its equal split drops tail rows, and a static split by rank needs no coordinator. The tasks load
this module, so it imports no torch.

Shapes: B images, H and W pixels, S the side of a crop, K classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt

from infra.capacity import ingest_options
from infra.errors import UserError
from infra.registry.gate import Score
from infra.storage import Store
from pipelines.config.crop import CropConfig
from pipelines.config.sections import CacheConfig
from pipelines.data.order.plan import eval_items, rows_within
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.work_item import WorkItem
from pipelines.data.tasks.crops import Block, TaskConfig, column, load_item, load_whole

if TYPE_CHECKING:
    import ray
    import torch

    from resnet_core.evaluation import EvalBatch, EvalSums

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Function from images uint8 B x H x W x 3 to probabilities B x K. H = W = S unless whole images are scored."""
ViewName = Literal["centre", "flip", "ten_crop", "multi_scale", "multi_scale_flip"]

_WINDOW = 3
_ITEM_BYTES = 16 * 2**20  # decoded, per task: hides a task's cost, and a few tasks fit into any memory
_ITEM_ROWS = (64, 4096)  # minimum and maximum rows of a task, for images of any size
_WHOLE_BYTES = 64 * 2**20  # the same for whole images at all scales; a task has one row group or a part of one
_WHOLE_ASPECT = 4 / 3  # typical of a photograph
_IMAGES_NDIM = 4
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)  # replaces a probability that softmax rounded to zero
_PAPER_CROP = 224
_PAPER_SCALES = (224, 256, 384, 480, 640)  # He et al. 2015, Section 3.4


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimit:
    """Limit on the images of one forward pass."""

    rows: int
    pixels: int

    def rows_of(self, block: Block) -> int:
        """Return how many of a block's images fit: fewer if they are large."""
        return self.rows_at(
            max(math.prod(values.shape[1:3]) for values in block.values() if values.ndim == _IMAGES_NDIM)
        )

    def rows_at(self, pixels: int) -> int:
        """Return how many images of `pixels` pixels each fit."""
        return max(1, min(self.rows, self.pixels // pixels))


ON_CPU = BatchLimit(rows=128, pixels=128 * 224**2)
"""Activations of one forward pass stay below a gigabyte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalCrops:
    """Test-time crops of each image. An image's probabilities are the mean over its crops.

    centre: the central crop. flip: the central crop and its mirror image. ten_crop: the corners and the centre of the
    central square of `eval_resize` pixels, and their mirror images. multi_scale: the whole image at several scales, at
    every position of the crop (`resnet_core.evaluation.views.Dense`). multi_scale_flip: the same, and mirrored.
    """

    name: ViewName = "centre"
    scales: tuple[int, ...] = ()
    """multi_scale: shorter sides in pixels; empty = the paper's, in proportion to its crop of 224 pixels."""

    @classmethod
    def parsed(cls, name: ViewName, scales: str) -> EvalCrops:
        """Return the crops `name` at scales such as "224,256,384". Raises UserError if a scale is not a number."""
        try:
            return cls(name=name, scales=tuple(int(scale) for scale in scales.split(",")) if scales else ())
        except ValueError:
            raise UserError(f"--scales takes numbers of pixels such as 224,256,384, got {scales!r}") from None

    @property
    def whole(self) -> bool:
        """True if the model is given whole images instead of crops."""
        return self.name.startswith("multi_scale")

    @property
    def mirrored(self) -> bool:
        return self.name.endswith("flip")

    def scales_for(self, size: int) -> tuple[int, ...]:
        """Return the scales for a crop of `size` pixels a side."""
        return self.scales or tuple(round(scale * size / _PAPER_CROP) for scale in _PAPER_SCALES)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalData:
    """A rank's part of a split, and the crops that are made of it."""

    store: Store
    """Root of the data set."""
    manifest: Manifest
    crop: CropConfig
    """Sizes, decoder and interpolation, at the model's input size. Other fields are ignored."""
    split: str = "test"
    rank: int = 0
    world_size: int = 1
    cache: CacheConfig | None = None
    tolerant: bool = False
    """Skip bad records (training only, which reports them); else a bad record is an error."""
    window: int = _WINDOW
    """Tasks in flight, finished ones included: limits the blocks that wait in the object store."""
    views: EvalCrops = field(default_factory=EvalCrops)
    task_cpus: float = 0.0
    """CPUs of a task that shares nodes with a run's data tasks (`infra.capacity.evaluation_cpus`); 0 = a whole CPU."""

    @property
    def scales(self) -> tuple[int, ...]:
        """Shorter sides of whole images, in pixels; empty for crops."""
        return self.views.scales_for(self.crop.image_size) if self.views.whole else ()

    @property
    def item_rows(self) -> int:
        """Approximate number of rows that one task decodes."""
        if self.views.whole:
            side = math.ceil(math.sqrt(_WHOLE_ASPECT * sum(scale**2 for scale in self.scales)))
            return rows_within(_WHOLE_BYTES, side, least=1, most=_ITEM_ROWS[1])
        return rows_within(_ITEM_BYTES, self._loaded.image_size, least=_ITEM_ROWS[0], most=_ITEM_ROWS[1])

    def items(self, item_rows: int) -> list[WorkItem]:
        """Return this rank's work items. Raises UserError if the data set has no such split."""
        self.manifest.require_split(self.split)
        rank_rows = self.manifest.splits[self.split] / self.world_size
        # a row group may hold more whole images than fit into a task: split as for `parts` times as many ranks
        parts = math.ceil(rank_rows / item_rows) if self.views.whole else 1
        first, count, size = self.rank * parts, self.world_size * parts, self._loaded.image_size
        return [
            item
            for part in range(first, first + parts)
            for item in eval_items(self.manifest, self.split, part, count, image_size=size, item_rows=item_rows)
        ]

    def load(self, item: WorkItem, rows_per_block: int) -> Iterator[Block]:
        """Return the decoded blocks of a work item. A Ray task calls this, if Ray is running."""
        if self.views.whole:
            return load_whole(self.store, self.manifest, item, self.scales, self.crop)
        config = TaskConfig(
            crop=self._loaded,
            train=False,
            seed=0,
            rows_per_block=rows_per_block,
            tolerant=self.tolerant,
            cache=self.cache,
        )
        blocks = load_item(self.store, self.manifest, item, config)
        return ({name: column[block["bad"] == ""] for name, column in block.items()} for block in blocks)

    @property
    def _loaded(self) -> CropConfig:
        """The crop that tasks make. For ten_crop it is the square that holds all ten; they are cut out of it later."""
        crop = self.crop.at(self.crop.image_size)
        return dataclasses.replace(crop, image_size=crop.eval_resize) if self.views.name == "ten_crop" else crop


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitScore(Score):
    """A model's scores on a whole split, for the gate and for people."""

    top5_accuracy: float  # 0 to 1
    calibration_error: float  # expected, 0 to 1
    class_counts: tuple[int, ...]  # images of each class
    class_correct: tuple[int, ...]  # correctly predicted images of each class
    class_predicted: tuple[int, ...]  # images that are put into each class
    macro_precision: float  # means over classes, 0 to 1
    macro_recall: float

    @classmethod
    def of(cls, sums: EvalSums, data: EvalData) -> Self:
        """Build the score from the sums over the whole split."""
        return cls(
            count=int(sums.count),
            data_digest=data.manifest.digest,
            class_counts=tuple(sums.class_counts.tolist()),
            class_correct=tuple(sums.class_correct.tolist()),
            class_predicted=tuple(sums.class_predicted.tolist()),
            **sums.metrics(),
        )

    @property
    def class_accuracy(self) -> tuple[float | None, ...]:
        """Accuracy of each class, 0 to 1; None for a class without images."""
        return tuple(
            right / count if count else None for right, count in zip(self.class_correct, self.class_counts, strict=True)
        )

    @property
    def class_precision(self) -> tuple[float, ...]:
        """Precision of each class, 0 to 1; 0 for a class that is never predicted."""
        pairs = zip(self.class_correct, self.class_predicted, strict=True)
        return tuple(right / max(1, predicted) for right, predicted in pairs)

    @property
    def class_f1(self) -> tuple[float, ...]:
        """F1 of each class, 0 to 1."""
        columns = zip(self.class_correct, self.class_counts, self.class_predicted, strict=True)
        return tuple(2 * right / max(1, count + predicted) for right, count, predicted in columns)


def window_of(world_size: int, worker_cpus: float) -> int:
    """Return how many tasks each rank of a run keeps in flight: few if the workers leave few CPUs free.

    Tasks that hold a small part of a CPU would all start at once, each in a separate process.
    """
    import ray

    free = ray.cluster_resources().get("CPU", 0.0) - world_size * worker_cpus
    return max(1, min(_WINDOW, int(free / world_size) + 1))


def score_blocks(data: EvalData) -> Iterator[Block]:
    """Yield this rank's samples in blocks of numpy columns.

    A block holds crops in id order (`load_item`) or whole images (`load_whole`). A Ray task loads each item, at most
    `data.window` tasks at a time. Without Ray, this process loads the items.

    Raises:
        UserError: the data set has no such split, a shard is missing or damaged, or an image does not decode.
    """
    import ray

    items, rows = data.items(data.item_rows), data.item_rows
    if not ray.is_initialized():
        for item in items:
            yield from data.load(item, rows)
        return
    # Always set a strategy: inside a Tune trial, Ray would put a worker's tasks into its placement group, where they
    # wait forever. "DEFAULT" fills half of a node before it uses the next one: all small tasks would fit on one node.
    strategy = "SPREAD" if data.task_cpus else "DEFAULT"
    placed = {"num_cpus": data.task_cpus or 1, "scheduling_strategy": strategy, **ingest_options()}
    load, shared = ray.remote(**placed)(_load), ray.put(data)
    in_flight: deque[ray.ObjectRef[list[Block]]] = deque()
    for item in items:
        if len(in_flight) == data.window:
            yield from _result(in_flight.popleft())
        in_flight.append(load.remote(shared, item, rows))
    while in_flight:
        yield from _result(in_flight.popleft())


def eval_batches(data: EvalData, device: torch.device, batch_size: int) -> Iterator[EvalBatch]:
    """Yield this rank's samples in batches of at most `batch_size` on the device, for `resnet_core.evaluation`."""
    from resnet_core.evaluation import EvalBatch

    for block in score_blocks(data):
        for rows in _split(block, batch_size):
            images_BHWC, labels_B, ids_B = (_sent(rows[name], device) for name in ("image", "label", "id"))
            yield EvalBatch(images_BHWC=images_BHWC, labels_B=labels_B, ids_B=ids_B)


def _sent(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Return a copy on the device. The host does not wait for a GPU, which copies from page-locked memory by itself."""
    import torch

    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    buffer = torch.empty(array.shape, dtype=dtype, pin_memory=device.type == "cuda")
    buffer.numpy()[...] = array
    return buffer.to(device, non_blocking=True)


def score_model(predict: Predict, data: EvalData, limit: BatchLimit = ON_CPU) -> SplitScore:
    """Score any function that returns probabilities, such as a registered model, with the same sums as training."""
    return SplitScore.of(sum_scores(predict, data, limit), data)


def sum_scores(predict: Predict, data: EvalData, limit: BatchLimit = ON_CPU) -> EvalSums:
    """Return this rank's sums for `score_model`; the sums of all ranks add up to the whole."""
    import torch

    from resnet_core.evaluation import EvalSums

    sums = EvalSums(len(data.manifest.class_names), torch.device("cpu"))
    for rows, probabilities in answers(predict, data, limit):
        sums.update(probabilities.log(), torch.tensor(rows["label"]))
    return sums


def answers(predict: Predict, data: EvalData, limit: BatchLimit = ON_CPU) -> Iterator[tuple[Block, torch.Tensor]]:
    """Yield this rank's samples with their class probabilities, float32 B x K, batch by batch.

    Nothing is padded, and crops are averaged image by image, so no prediction depends on the rest of its batch. A
    probability that was rounded to zero counts as the smallest normal float32, a loss of 87.3.
    """
    import torch

    from resnet_core.evaluation.views import mean_probabilities

    for block in score_blocks(data):
        for rows in _split(block, limit.rows_of(block)):
            crops = _crops(rows, data)
            probabilities = mean_probabilities(torch.from_numpy(predict(crop.numpy())) for crop in crops)
            yield rows, probabilities.clamp(min=_LEAST_PROBABILITY)


def example_images(data: EvalData, count: int) -> npt.NDArray[np.uint8]:
    """Return the first `count` images of this rank's part, uint8 count x S x S x 3; repeat a smaller split."""
    block = next(data.load(data.items(item_rows=1)[0], rows_per_block=count))
    images: npt.NDArray[np.uint8] = block["image"][np.arange(count) % len(block["image"])].astype(np.uint8)
    return images


def _crops(block: Block, data: EvalData) -> Iterator[torch.Tensor]:
    """Yield every crop, or the whole image at every scale, of a block's images: uint8 B x H x W x 3 each."""
    import torch

    from resnet_core.evaluation.views import mirrored, ten_crops

    for name in map(column, data.scales) if data.views.whole else ("image",):
        images = torch.tensor(block[name])  # copies: blocks from the object store are read-only
        if data.views.name == "ten_crop":
            yield from ten_crops(images, data.crop.image_size)
        elif data.views.mirrored:
            yield from mirrored(images)
        else:
            yield images


def _split(block: Block, rows: int) -> Iterator[Block]:
    for begin in range(0, len(block["id"]), rows):
        yield {name: values[begin : begin + rows] for name, values in block.items()}


def _load(data: EvalData, item: WorkItem, rows: int) -> list[Block]:
    return list(data.load(item, rows))


def _result(reference: ray.ObjectRef[list[Block]]) -> list[Block]:
    """Return a task's blocks. Raise the UserError of a task as it is, without the task's traceback."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
