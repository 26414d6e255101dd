"""The stream: every sample of every epoch reaches exactly one worker, whatever the ledger and the world size."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from infra.storage import open_store
from pipelines.data.decode import CropConfig
from pipelines.data.ingest import FILLER, Stream, build_dataset
from pipelines.data.ledger import Ledger
from pipelines.data.plan import item_order, rows_within
from pipelines.data.sources import open_source
from pipelines.data.write import PrepareConfig, prepare

ROWS = 4000


@pytest.fixture(scope="module")
def stream(ray_local, tmp_path_factory):
    root = tmp_path_factory.mktemp("stream")
    store = open_store(str(root / "data"))
    manifest = prepare(open_source("mnist5k"), store, PrepareConfig())
    return Stream(
        manifest=manifest,
        data_uri=store.uri,
        run_uri=open_store(str(root / "run")).uri,
        crop=CropConfig(image_size=28, train_crop="pad", pad=2, eval_resize=28),
        sizes=((0, 28),),
        split="train",
        seed=0,
        total_samples=2 * ROWS + 1001,
        task_mb=4,
        ordered=True,
    )


def received(stream, base, ledger, world_size):
    """What each worker gets, as (epoch, id, base) rows in order."""
    parts = build_dataset(stream, base, ledger, world_size).streaming_split(world_size, equal=True)
    rows: list[list[np.ndarray]] = [[] for _ in parts]

    def read(rank):
        for block in parts[rank].iter_batches(batch_size=None, batch_format="numpy"):
            rows[rank].append(np.stack([block["epoch"], block["id"], block["base"]], axis=1))

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [np.concatenate(part) for part in rows]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_once_in_equal_parts(stream, world_size):
    parts = received(stream, 0, Ledger(ROWS), world_size)
    assert len({len(part) for part in parts}) == 1
    rows = np.concatenate(parts)
    real = rows[rows[:, 1] != FILLER]
    assert len(rows) - len(real) < world_size
    assert len(real) == stream.total_samples
    ledger = Ledger(ROWS)
    for epoch in range(3):
        ledger.mark(epoch, real[real[:, 0] == epoch, 1])  # raises on a sample seen twice
    assert {epoch: (count.once, count.never) for epoch, count in ledger.report().items()} == {
        0: (ROWS, 0),
        1: (ROWS, 0),
        2: (1001, ROWS - 1001),
    }


def test_the_rest_of_an_interrupted_run_is_the_unbroken_run_from_there(stream):
    (whole,) = received(stream, 0, Ledger(ROWS), 1)
    done = 4321
    ledger = Ledger(ROWS)
    for epoch in (0, 1):
        ledger.mark(epoch, whole[:done][whole[:done, 0] == epoch, 1])
    (rest,) = received(stream, 77, ledger, 1)
    assert rest[:, :2].tolist() == whole[done:, :2].tolist()
    assert set(rest[:, 2].tolist()) == {77}


def test_a_finished_run_still_tells_every_worker_where_it_stands(stream):
    ledger = Ledger(ROWS)
    for epoch in (0, 1):
        ledger.mark(epoch, np.arange(ROWS))
    (whole,) = received(stream, 0, Ledger(ROWS), 1)
    ledger.mark(2, whole[whole[:, 0] == 2, 1])
    parts = received(stream, 140, ledger, 2)
    assert [part.tolist() for part in parts] == [[[FILLER, FILLER, 140]], [[FILLER, FILLER, 140]]]


def test_repeats_give_each_row_several_views(stream):
    """Three quarters of a pass; the filler has the rows' shape."""
    crop = dataclasses.replace(stream.crop, repeats=3)
    repeated = dataclasses.replace(stream, crop=crop, total_samples=3001)
    parts = build_dataset(repeated, 0, Ledger(ROWS), 2).streaming_split(2, equal=True)
    blocks: list[list[dict[str, np.ndarray]]] = [[], []]

    def read(rank):
        blocks[rank].extend(parts[rank].iter_batches(batch_size=None, batch_format="numpy"))

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [block for part in blocks for block in part]
    assert {block["image"].shape[1:] for block in rows} == {(3, 28, 28, 3)}
    ids = np.concatenate([block["id"] for block in rows])
    assert (len(ids), np.count_nonzero(ids == FILLER), len(np.unique(ids))) == (3002, 1, 3002)


def test_epochs_have_orders_of_their_own(stream):
    ids = np.arange(100, dtype=np.int64)
    orders = [item_order(0, epoch, ids).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_rows_within_bounds():
    assert rows_within(32 * 2**20, 224, least=64, most=8192) == 222
    assert rows_within(32 * 2**20, 28, least=64, most=8192) == 8192
    assert rows_within(2**20, 512, least=64, most=8192) == 64
