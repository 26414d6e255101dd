from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.config.crop import CropConfig
from pipelines.data.images.pillow import DecodeError, open_record, to_rgb
from pipelines.data.images.stored import Stored
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import Plan, eval_items, plan_items
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards import reader as read
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.reader import IntegrityError, read_rows
from pipelines.data.shards.stored_images import BadSample
from pipelines.data.shards.work_item import WorkItem
from pipelines.data.tasks.crops import TaskConfig, load_item

CROP = CropConfig(image_size=28, eval_resize=28, train_crop="pad", pad=2)
Mnist = tuple[LocalStore, Manifest]


@pytest.fixture(autouse=True)
def no_footers_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test reads like a process that has just started."""
    monkeypatch.setattr(read, "_footers", read._Footers())


def config(train: bool, rows_per_block: int = 100, seed: int = 0) -> TaskConfig:
    return TaskConfig(crop=CROP, train=train, seed=seed, rows_per_block=rows_per_block)


def load(mnist: Mnist, items: list[WorkItem], how: TaskConfig) -> dict[str, Any]:
    blocks = [block for item in items for block in load_item(*mnist, item, how)]
    assert all(len(block["id"]) <= how.rows_per_block for block in blocks)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def flip_bit(store: LocalStore, path: str, offset: int) -> None:
    file = Path(store.uri, path)
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def test_row_groups_cover_the_shard_and_hold_dense_ids(mnist: Mnist) -> None:
    store, manifest = mnist
    shard = manifest.shards[1]
    assert (shard.split, shard.rows, [group.rows for group in shard.groups]) == ("train", 1000, [32] * 31 + [8])
    table = read_rows(store, shard, range(len(shard.groups)))
    assert table["id"].to_pylist() == list(range(1000, 2000))
    assert read_rows(store, shard, [31, 2])["id"].to_pylist() == [*range(1992, 2000), *range(1064, 1096)]
    assert manifest.shards[4].split == "test"
    assert read_rows(store, manifest.shards[4], [0])["id"][0].as_py() == 4000


def test_stored_pixels_are_the_sources_by_key(mnist: Mnist) -> None:
    store, manifest = mnist
    source = {s.key: s for split in open_source("mnist5k").splits.values() for s in split.read()}
    seen = set()
    for shard in manifest.shards:
        table = read_rows(store, shard, range(len(shard.groups)))
        for key, label, image in zip(
            table["key"].to_pylist(), table["label"].to_pylist(), to_rgb(table, manifest.stored), strict=True
        ):
            assert (source[key].label, source[key].split) == (label, shard.split)
            assert np.array_equal(image, np.repeat(np.asarray(source[key].image)[:, :, None], 3, axis=2))
            seen.add(key)
    assert len(seen) == 5000


def test_a_flipped_bit_is_found_where_it_is(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    store, manifest = mnist
    shard = manifest.shards[2]
    flip_bit(store, shard.path, shard.groups[3].start + 1000)
    read_rows(store, shard, [2, 4])
    with pytest.raises(
        IntegrityError,
        match=rf"shard {shard.path} in .*: row group 3 has sha256 .* the manifest says {shard.groups[3].sha256[:16]}",
    ):
        read_rows(store, shard, [2, 3])
    flip_bit(store, shard.path, shard.footer.start + 10)
    assert read_rows(store, shard, [0]).num_rows == 32  # a footer once verified is not asked for again
    monkeypatch.setattr(read, "_footers", read._Footers())
    with pytest.raises(IntegrityError, match="footer has sha256"):
        read_rows(store, shard, [0])


def test_truncated_and_missing_shards_are_named(mnist: Mnist) -> None:
    store, manifest = mnist
    shard = manifest.shards[0]
    file = Path(store.uri, shard.path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=rf"footer has sha256 .* \({shard.footer.length - 1:,} bytes\)"):
        read_rows(store, shard, [0])
    file.unlink()
    with pytest.raises(UserError, match=rf"shard {shard.path} is missing in {store.uri}"):
        read_rows(store, shard, [0])


def test_a_fault_of_one_transfer_is_fetched_again(mnist: Mnist) -> None:
    store, manifest = mnist

    class Flaky:
        """The second of its reads, which come from several threads, loses a byte."""

        description = "flaky"

        def __init__(self) -> None:
            self.numbers = itertools.count(1)

        def read(self, path: str, *, start: int = 0, length: int | None = None) -> bytes:
            number = next(self.numbers)
            data = store.read(path, start=start, length=length)
            return data[:-1] if number == 2 else data

    flaky: Any = Flaky()
    assert read_rows(flaky, manifest.shards[0], [0]).equals(read_rows(store, manifest.shards[0], [0]))
    assert next(flaky.numbers) == 4  # the footer, the row group, and one of them again


def test_a_raw_record_of_wrong_length_does_not_decode() -> None:
    with pytest.raises(DecodeError, match="783 bytes, expected 28x28x1"):
        open_record(bytes(783), Stored(form="raw", size=28, quality=0, channels=1))


def test_one_epoch_of_tasks_yields_every_sample_once(mnist: Mnist) -> None:
    plan = Plan(manifest=mnist[1], split="train", seed=3, total_samples=4000, sizes=((0, 28),))
    rows = load(mnist, list(plan_items(plan, Ledger(4000))), config(train=True))
    assert np.array_equal(np.sort(rows["id"]), np.arange(4000))
    assert not np.array_equal(rows["id"], np.sort(rows["id"]))
    assert (rows["image"].shape, rows["image"].dtype) == ((4000, 28, 28, 3), np.dtype(np.uint8))
    assert (rows["label"].dtype, rows["id"].dtype, rows["epoch"].dtype) == (np.int64, np.int64, np.int32)
    assert np.bincount(rows["label"]).tolist() == [400] * 10


def test_tasks_after_a_restart_go_on_with_the_same_pixels_in_the_same_order(mnist: Mnist) -> None:
    """Steps may end inside items; the last epoch of this run is cut short."""
    plan = Plan(manifest=mnist[1], split="train", seed=3, total_samples=5000, sizes=((0, 28),))
    unbroken = load(mnist, list(plan_items(plan, Ledger(4000))), config(train=True))
    assert len(unbroken["id"]) == 5000
    ledger, done = Ledger(4000), 4321
    for epoch in (0, 1):
        ledger.mark(epoch, unbroken["id"][:done][unbroken["epoch"][:done] == epoch])
    rest = load(mnist, list(plan_items(plan, ledger)), config(train=True, rows_per_block=37))
    for name, values in rest.items():
        assert np.array_equal(values, unbroken[name][done:]), name


def test_seed_and_epoch_change_the_crop_and_evaluation_does_not(mnist: Mnist) -> None:
    item = WorkItem(epoch=0, pieces=((0, 0), (1, 5)), rows=64, image_size=28)
    later = WorkItem(epoch=1, pieces=item.pieces, rows=64, image_size=28)

    def images(what: WorkItem, how: TaskConfig) -> bytes:
        rows = load(mnist, [what], how)
        return bytes(rows["image"][np.argsort(rows["id"])].tobytes())

    first = images(item, config(train=True))
    assert first == images(item, config(train=True, rows_per_block=7))
    assert len({first, images(later, config(train=True)), images(item, config(train=True, seed=1))}) == 3
    assert images(item, config(train=False)) == images(later, config(train=False, seed=1))


def test_evaluation_over_three_ranks_yields_the_split_once_in_order(mnist: Mnist) -> None:
    ranks = [
        load(mnist, eval_items(mnist[1], "test", rank, 3, image_size=28), config(train=False)) for rank in range(3)
    ]
    assert [len(rank["id"]) for rank in ranks] == [333, 333, 334]
    assert np.concatenate([rank["id"] for rank in ranks]).tolist() == list(range(4000, 5000))


def test_items_have_the_size_that_the_plan_says(mnist: Mnist) -> None:
    item = WorkItem(epoch=0, pieces=((0, 0),), rows=32, image_size=14)
    assert load(mnist, [item], config(train=True))["image"].shape == (32, 14, 14, 3)


def test_a_sample_that_does_not_decode_is_named(mnist: Mnist) -> None:
    store, manifest = mnist
    edited = Manifest(
        class_names=manifest.class_names,
        stored=Stored(form="original", size=0, quality=0, channels=3),
        source="",
        fingerprint="",
        prepare={},
        splits=manifest.splits,
        shards=manifest.shards,
    )
    item = WorkItem(epoch=0, pieces=((5, 0),), rows=32, image_size=28)
    with pytest.raises(
        BadSample, match=r"sample 4250 \(mnist5k-\d+\) of shard test-00001\.parquet does not decode: not an image"
    ):
        next(load_item(store, edited, item, config(train=False)))
