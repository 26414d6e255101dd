"""A multi-label data set from its source to a rank batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from rich.console import Console

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.config.crop import CropConfig
from pipelines.config.prepare import PrepareConfig
from pipelines.config.recipe import build_recipe
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import Plan, plan_items
from pipelines.data.prepare.label_sets import LabelSets, class_counts
from pipelines.data.shards.manifest import MANIFEST, Manifest
from pipelines.data.shards.reader import FetchedRows, Reader, read_rows, schema
from pipelines.data.shards.stored_images import BadSample, StoredImages
from pipelines.data.shards.work_item import WorkItem
from pipelines.data.tasks.crops import TaskConfig, load_item, load_whole
from pipelines.data.tasks.timing import StageClock
from pipelines.training.batches import RankBatches, Steps
from pipelines.training.driver import train
from pipelines.training.ordered import chunked, opened, sealed
from tests.pipelines.conftest import written
from tests.pipelines.data.built import labelled_arrays
from tests.pipelines.data.conftest import layout_only

SETS: dict[str, list[list[int]]] = {"train": [[0], [2, 0], [], [1], [0, 1, 2], [2]] * 5, "test": [[1], [0, 2], []] * 2}
CROP = CropConfig(image_size=6, eval_resize=6, train_crop="pad", pad=1)
Made = tuple[LocalStore, Manifest]


def multi_hot(sets: list[list[int]]) -> npt.NDArray[np.uint8]:
    return np.array([[number in each for number in range(3)] for each in sets], dtype=np.uint8)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    store = LocalStore(uri=str(tmp_path / "data"))
    manifest = written(labelled_arrays(SETS), store, PrepareConfig(min_shards=2))
    store.write(MANIFEST, manifest.to_json().encode())
    return store, manifest


def test_label_sets_keep_and_count_classes() -> None:
    sets = LabelSets.of([(), (2, 0), (1,)])
    assert [sets[number] for number in range(len(sets))] == [[], [0, 2], [1]]
    counts = class_counts(np.array([0, 1, 1, 2], np.int32), 4, sets)
    assert counts.tolist() == [2, 1, 2, 0]
    assert class_counts(np.array([0, 1, 1, 3], np.int32), 4, None).tolist() == [1, 2, 0, 1]


def test_only_a_multi_label_manifest_says_so(made: Made) -> None:
    _, manifest = made
    assert manifest.multi_label
    text = manifest.to_json()
    assert '"multi_label": true' in text.replace(":true", ": true")
    assert Manifest.from_json(text) == manifest
    single = dataclasses.replace(manifest, multi_label=False)
    assert "multi_label" not in single.to_json()
    assert single.digest != manifest.digest


def test_a_single_label_data_set_keeps_the_digest_that_it_had_before_multi_label() -> None:
    digest = "168433169f997ab1be72fc89fb1ecead6ce49e2562cb5997f82de23a41319281"
    assert layout_only([[3, 2], [4]], test=[[2]]).digest == digest
    assert schema(multi_label=False).names == ["image", "label", "id", "key"]


def test_shards_keep_the_set_of_every_image(made: Made) -> None:
    store, manifest = made
    found = {}
    for shard in manifest.shards:
        table = read_rows(store, shard, range(len(shard.groups)))
        assert table.schema.equals(schema(multi_label=True))
        found |= {row["key"]: row["labels"] for row in table.to_pylist()}
    assert found == {f"{split}-{index}": sorted(s) for split, sets in SETS.items() for index, s in enumerate(sets)}


def test_blocks_have_one_number_per_class(made: Made) -> None:
    store, manifest = made
    plan = Plan(manifest=manifest, split="train", seed=0, total_samples=30, sizes=((0, 6),))
    how = TaskConfig(crop=CROP, train=True, seed=0, rows_per_block=7)
    items = list(plan_items(plan, Ledger(30)))
    blocks = [block for item in items for block in load_item(store, manifest, item, how)]
    label, ids = (np.concatenate([block[name] for block in blocks]) for name in ("label", "id"))
    assert (label.dtype, label.shape) == (np.uint8, (30, 3))
    shards = manifest.shards_of("train")
    stored = [labels for shard in shards for labels in read_rows(store, shard, [0])["labels"].to_pylist()]
    assert np.array_equal(label, multi_hot([stored[number] for number in ids.tolist()]))
    whole = list(load_whole(store, manifest, items[0], [6], CROP))
    assert whole[0]["label"].shape == (len(whole[0]["id"]), 3)


def test_a_class_out_of_range_is_a_bad_record(made: Made) -> None:
    import pyarrow as pa

    _, manifest = made
    columns = {"image": [bytes(108)] * 3, "labels": [[0, 2], [1, 3], []], "id": [0, 1, 2], "key": ["a", "b", "c"]}
    fetched = FetchedRows(table=pa.table(columns, schema=schema(multi_label=True)))
    images = StoredImages(fetched, manifest, tolerant=True)
    assert images.labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    used = [images.use(row, lambda encoded, number: number) for row in range(3)]
    assert used == [0, None, 2]
    assert "label 3 is outside 0..2" in str(images.bad(np.array([1])))
    strict = StoredImages(fetched, manifest, tolerant=False)
    with pytest.raises(BadSample, match=r"sample 1 \(b\) of shard train-00000.parquet has no class: label 3"):
        strict.use(1, lambda encoded, number: number)


def test_an_unreadable_row_group_joins_the_others(made: Made) -> None:
    store, manifest = made
    shard = manifest.shards[0]
    file = Path(store.uri, shard.path)
    data = bytearray(file.read_bytes())
    data[shard.groups[0].start + 8] ^= 1
    file.write_bytes(data)
    item = WorkItem(epoch=0, pieces=((0, 0), (1, 0)), rows=30, image_size=6)
    fetched = Reader(store=store, manifest=manifest, tolerant=True).fetch(item)
    assert sorted(fetched.faults) == list(range(shard.rows))
    assert StoredImages(fetched, manifest, tolerant=True).labels[: shard.rows].sum() == 0


@pytest.mark.parametrize("repeats", [1, 2])
def test_rank_batches_hold_multi_hot_labels(repeats: int) -> None:
    labels = multi_hot(SETS["train"][:6])
    shape = (6, 2, 4, 4, 3) if repeats > 1 else (6, 4, 4, 3)
    block = {
        "image": np.zeros(shape, np.uint8),
        "label": labels,
        "id": np.array([0, 1, -1, 3, 4, 5]),
        "draw": np.array([0, 1, -1, 3, 4, 5]),
        "epoch": np.zeros(6, np.int32),
        "bad": np.array(["", "", "", "", '["undecodable", "", ""]', ""], dtype=object),
        "base": np.zeros(6, np.int64),
        "warning": np.full(6, "", dtype=object),
        **StageClock().columns(6),
    }
    steps = Steps(
        total_samples=5,
        total_steps=1,
        global_batch_size=5 * repeats,
        world_size=1,
        microbatch_size=0,
        repeats=repeats,
    )
    batches = RankBatches([block], steps, torch.device("cpu"))
    (batch,) = batches.from_step(batches.base())
    (microbatch,) = batch.microbatches
    assert microbatch.labels_B.dtype == torch.uint8
    good = labels[[0, 1, 3, 5]]  # neither the filler row nor the bad record
    assert microbatch.labels_B.tolist() == np.concatenate([good] * repeats).tolist()


def test_training_on_it_needs_a_loss_for_each_class(made: Made, tmp_path: Path) -> None:
    store, _ = made
    recipe = build_recipe({}, {"name": "many", "data.uri": store.uri, "run.home": str(tmp_path / "runs")})
    with pytest.raises(UserError, match=r'optim\.loss must be "bce" or "bce_sum" for a multi-label data set'):
        train(recipe, Console(quiet=True))


def test_chunks_of_an_ordered_stream_keep_the_labels() -> None:
    labels = multi_hot(SETS["train"][:5])

    def filler(rows: int, size: int) -> dict[str, npt.NDArray[np.generic]]:
        raise AssertionError(f"{rows} rows of {size} pixels are missing")

    block: dict[str, npt.NDArray[np.generic]] = {
        "image": np.zeros((5, 4, 4, 3), np.uint8),
        "label": labels,
        "id": np.arange(5),
    }
    blocks = list(chunked([{name: column[:4] for name, column in block.items()}], 2, filler))
    joined = [*opened([sealed(each) for each in blocks])]
    assert np.concatenate([each["label"] for each in joined]).tolist() == labels[:4].tolist()
    assert joined[0]["label"].dtype == np.uint8
