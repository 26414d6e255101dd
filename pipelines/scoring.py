"""Exact scoring of a whole split: every sample once, through plain Ray tasks; a score may be that of several views.

Not through Ray Data: its equal split drops tail rows, and a static split by rank needs no coordinator. The tasks load
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
from infra.gate import Score
from infra.storage import Store
from pipelines.data.cache import CacheConfig
from pipelines.data.decode import CropConfig
from pipelines.data.manifest import Manifest
from pipelines.data.plan import WorkItem, eval_items, rows_within
from pipelines.data.task import Block, TaskConfig, load_item
from pipelines.data.whole import column, load_whole

if TYPE_CHECKING:
    import ray
    import torch

    from resnet_core.evaluation import EvalBatch, EvalSums

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""uint8 B x H x W x 3 to probabilities B x K; where views are crops, H = W = S."""
ViewName = Literal["centre", "flip", "ten_crop", "multi_scale", "multi_scale_flip"]

_WINDOW = 3
_ITEM_BYTES = 16 * 2**20  # decoded: hides the cost of a task, and a few in flight fit into any memory
_ITEM_ROWS = (64, 4096)  # bounds of it, whatever the size of the images
_WHOLE_BYTES = 64 * 2**20  # of whole images at all scales, which come row group by row group or in parts of one
_WHOLE_ASPECT = 4 / 3  # of a photograph
_IMAGES_NDIM = 4
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)  # of a class that a softmax rounded to zero
_PAPER_CROP = 224
_PAPER_SCALES = (224, 256, 384, 480, 640)  # He et al. 2015, Section 3.4


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimit:
    """How much goes through a model at once, at most."""

    rows: int
    pixels: int

    def rows_of(self, block: Block) -> int:
        """How many of a block's images: fewer where they are large."""
        return self.rows_at(
            max(math.prod(values.shape[1:3]) for values in block.values() if values.ndim == _IMAGES_NDIM)
        )

    def rows_at(self, pixels: int) -> int:
        """How many images of so many pixels."""
        return max(1, min(self.rows, self.pixels // pixels))


ON_CPU = BatchLimit(rows=128, pixels=128 * 224**2)
"""Activations of one forward pass stay below a gigabyte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """What of an image is shown to a model. Its score is the mean of the probabilities of all views.

    centre: the central crop. flip: that and its mirror image. ten_crop: the corners and the centre of the central
    square of `eval_resize` pixels, and their mirror images. multi_scale: the whole image at several scales, at every
    position of the crop (`resnet_core.evaluation.views.Dense`). multi_scale_flip: that and the mirror images.
    """

    name: ViewName = "centre"
    scales: tuple[int, ...] = ()
    """multi_scale: pixels of the shorter side; none = the paper's, in proportion to its crop of 224 pixels."""

    @property
    def whole(self) -> bool:
        """Whether views are whole images."""
        return self.name.startswith("multi_scale")

    @property
    def mirrored(self) -> bool:
        return self.name.endswith("flip")

    def scales_for(self, size: int) -> tuple[int, ...]:
        """The scales for a crop of `size` pixels a side."""
        return self.scales or tuple(round(scale * size / _PAPER_CROP) for scale in _PAPER_SCALES)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalData:
    """One rank's share of a split."""

    store: Store
    """Root of the data set."""
    manifest: Manifest
    crop: CropConfig
    """Its sizes, decoder and interpolation count; at the size that the model takes."""
    split: str = "test"
    rank: int = 0
    world_size: int = 1
    cache: CacheConfig | None = None
    tolerant: bool = False
    """Leave bad samples out, which training names; else they are errors, and evaluation is never tolerant."""
    window: int = _WINDOW
    """Tasks in flight, finished ones included: bounds what waits in the object store."""
    views: Views = field(default_factory=Views)
    task_cpus: float = 0.0
    """CPUs that a task holds beside the data tasks of a run (`infra.capacity.evaluation_cpus`); 0 = a whole one."""

    @property
    def scales(self) -> tuple[int, ...]:
        """Shorter sides of whole images, in pixels; none where views are crops."""
        return self.views.scales_for(self.crop.image_size) if self.views.whole else ()

    @property
    def item_rows(self) -> int:
        """About how many rows one task decodes."""
        if self.views.whole:
            side = math.ceil(math.sqrt(_WHOLE_ASPECT * sum(scale**2 for scale in self.scales)))
            return rows_within(_WHOLE_BYTES, side, least=1, most=_ITEM_ROWS[1])
        return rows_within(_ITEM_BYTES, self._loaded.image_size, least=_ITEM_ROWS[0], most=_ITEM_ROWS[1])

    def items(self, item_rows: int) -> list[WorkItem]:
        """This rank's work. Raises UserError where the data set has no such split."""
        self.manifest.require_split(self.split)
        share = self.manifest.splits[self.split] / self.world_size
        # a row group has more whole images than fit into a task: as if there were that many more ranks
        parts = math.ceil(share / item_rows) if self.views.whole else 1
        first, count, size = self.rank * parts, self.world_size * parts, self._loaded.image_size
        return [
            item
            for part in range(first, first + parts)
            for item in eval_items(self.manifest, self.split, part, count, image_size=size, item_rows=item_rows)
        ]

    def load(self, item: WorkItem, rows_per_block: int) -> Iterator[Block]:
        """What the task of an item does."""
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
        """The crop that tasks make: the device takes the ten from the square that they all lie in."""
        crop = self.crop.at(self.crop.image_size)
        return dataclasses.replace(crop, image_size=crop.eval_resize) if self.views.name == "ten_crop" else crop


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitScore(Score):
    """What a model scored on a whole split, as the gate compares it and as people read it."""

    top5_accuracy: float  # 0 to 1
    calibration_error: float  # expected, 0 to 1
    class_counts: tuple[int, ...]  # images of each class
    class_correct: tuple[int, ...]  # those that were predicted right

    @classmethod
    def of(cls, sums: EvalSums, data: EvalData) -> Self:
        """From the sums over the whole split."""
        return cls(
            count=int(sums.count),
            data_digest=data.manifest.digest,
            class_counts=tuple(sums.class_counts.tolist()),
            class_correct=tuple(sums.class_correct.tolist()),
            **sums.metrics(),
        )

    @property
    def class_accuracy(self) -> tuple[float | None, ...]:
        """0 to 1; None for a class without images."""
        return tuple(
            right / count if count else None for right, count in zip(self.class_correct, self.class_counts, strict=True)
        )


def window_of(world_size: int, worker_cpus: float) -> int:
    """Return the tasks in flight of each rank of a run: few where few CPUs are left beside the workers.

    Tasks that hold a small part of a CPU would all start at once, each in a process of its own.
    """
    import ray

    left = ray.cluster_resources().get("CPU", 0.0) - world_size * worker_cpus
    return max(1, min(_WINDOW, int(left / world_size) + 1))


def score_blocks(data: EvalData) -> Iterator[Block]:
    """This rank's samples as blocks of numpy columns: crops in id order (`load_item`), or whole images (`load_whole`).

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
    # A strategy in any case: below Tune a worker's tasks would be put into its own placement group, where they wait for
    # ever. Ray fills half of a node before it takes the next one, which many small tasks would all fit into.
    strategy = "SPREAD" if data.task_cpus else "DEFAULT"
    placed = {"num_cpus": data.task_cpus or 1, "scheduling_strategy": strategy, **ingest_options()}
    load, shared = ray.remote(**placed)(_load), ray.put(data)
    flying: deque[ray.ObjectRef[list[Block]]] = deque()
    for item in items:
        if len(flying) == data.window:
            yield from _result(flying.popleft())
        flying.append(load.remote(shared, item, rows))
    while flying:
        yield from _result(flying.popleft())


def eval_batches(data: EvalData, device: torch.device, batch_size: int) -> Iterator[EvalBatch]:
    """This rank's samples as batches of at most `batch_size` images on the device, for `resnet_core.evaluation`."""
    import torch

    from resnet_core.evaluation import EvalBatch

    for block in score_blocks(data):
        for rows in _split(block, batch_size):
            yield EvalBatch(  # torch.tensor copies: blocks from the object store cannot be written to
                images_BHWC=torch.tensor(rows["image"], device=device),
                labels_B=torch.tensor(rows["label"], device=device),
                ids_B=torch.tensor(rows["id"], device=device),
            )


def score_model(predict: Predict, data: EvalData, limit: BatchLimit = ON_CPU) -> SplitScore:
    """Score whatever answers with probabilities, such as a registered model, with the same sums as training does."""
    return SplitScore.of(sum_scores(predict, data, limit), data)


def sum_scores(predict: Predict, data: EvalData, limit: BatchLimit = ON_CPU) -> EvalSums:
    """This rank's part of `score_model`; those of all ranks add up to the whole."""
    import torch

    from resnet_core.evaluation import EvalSums

    sums = EvalSums(len(data.manifest.class_names), torch.device("cpu"))
    for rows, probabilities in answers(predict, data, limit):
        sums.update(probabilities.log(), torch.tensor(rows["label"]))
    return sums


def answers(predict: Predict, data: EvalData, limit: BatchLimit = ON_CPU) -> Iterator[tuple[Block, torch.Tensor]]:
    """This rank's samples with the probabilities of their classes, float32 B x K, batch by batch.

    Nothing is padded, and views are averaged image by image, so that no answer depends on what else is in a batch. A
    probability that was rounded to zero counts as the least normal float32, a loss of 87.3.
    """
    import torch

    from resnet_core.evaluation.views import mean_probabilities

    for block in score_blocks(data):
        for rows in _split(block, limit.rows_of(block)):
            views = _views(rows, data)
            probabilities = mean_probabilities(torch.from_numpy(predict(view.numpy())) for view in views)
            yield rows, probabilities.clamp(min=_LEAST_PROBABILITY)


def example_images(data: EvalData, count: int) -> npt.NDArray[np.uint8]:
    """The first `count` images of the share, uint8 count x S x S x 3; a smaller split is repeated."""
    block = next(data.load(data.items(item_rows=1)[0], rows_per_block=count))
    images: npt.NDArray[np.uint8] = block["image"][np.arange(count) % len(block["image"])].astype(np.uint8)
    return images


def _views(block: Block, data: EvalData) -> Iterator[torch.Tensor]:
    """Every view of a block's images, uint8 B x H x W x 3 each."""
    import torch

    from resnet_core.evaluation.views import mirrored, ten_crops

    for name in map(column, data.scales) if data.views.whole else ("image",):
        images = torch.tensor(block[name])  # copies: blocks from the object store cannot be written to
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
    """A task's blocks; what a user can put right is told as it is, not as the traceback of a task."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
