from __future__ import annotations

import numpy as np

from infra.storage import LocalStore
from pipelines.config.crop import CropConfig
from pipelines.data.order.plan import eval_items
from pipelines.data.shards.manifest import Manifest
from pipelines.data.tasks.crops import ImageSum, TaskConfig, load_item

CONFIG = TaskConfig(
    crop=CropConfig(image_size=28, eval_resize=28, train_crop="pad", repeats=2), train=False, seed=0, rows_per_block=100
)


def test_the_mean_image_of_a_split_has_the_same_bits_however_it_is_shared(mnist: tuple[LocalStore, Manifest]) -> None:
    def shared_by(ranks: int) -> ImageSum:
        parts = [
            ImageSum.of((block for item in items for block in load_item(*mnist, item, CONFIG)), 28)
            for items in (eval_items(mnist[1], "train", rank, ranks, image_size=28) for rank in range(ranks))
        ]
        return sum(parts[1:], start=parts[0])

    whole = shared_by(1)
    items = eval_items(mnist[1], "train", 0, 1, image_size=28)
    images = np.concatenate([block["image"] for item in items for block in load_item(*mnist, item, CONFIG)])
    assert (len(images), whole.count, images.shape[1:]) == (4000, 4000, (28, 28, 3))
    mean = whole.mean()
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, images.astype(np.float64).mean(0) / 255, rtol=1e-6)
    assert np.array_equal(shared_by(3).mean(), mean)


def test_no_images_sum_to_zero() -> None:
    empty = ImageSum.of((), 4)
    assert (empty.count, empty.total.shape, int(empty.total.sum())) == (0, (4, 4, 3), 0)
