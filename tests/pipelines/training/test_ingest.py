"""The stream: every sample of every epoch reaches exactly one worker, whatever the ledger and the world size."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from infra.storage import open_store
from pipelines.config.crop import CropConfig
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import FILLER, item_order, rows_within
from pipelines.data.prepare.prepare import PrepareConfig, prepare
from pipelines.data.prepare.sources import open_source
from pipelines.training.ordered import opened
from pipelines.training.stream import Stream, build_dataset

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
        step_rows=64,
        task_mb=4,
        ordered=False,
    )


@pytest.fixture(scope="module")
def ordered(stream):
    """140 steps of 64 rows; the sizes change at step 75, in the middle of a task and an epoch."""
    return dataclasses.replace(stream, ordered=True, task_mb=1, sizes=((0, 28), (75 * 64, 32)))


@pytest.fixture(scope="module")
def planned(ordered):
    """What one worker gets."""
    (rows,) = received(ordered, 0, Ledger(ROWS), 1)
    return rows


@pytest.fixture(scope="module")
def straight(ordered):
    """What each of two workers gets."""
    return received(ordered, 0, Ledger(ROWS), 2)


def digest(image):
    """Names a picture by its pixels and its side."""
    return image.shape[0] * 2**32 + zlib.crc32(image.tobytes())


def received(stream, base, ledger, world_size):
    """What each worker gets, as rows of (epoch, id, base, digest of the image), in order."""
    parts = build_dataset(stream, base, ledger, world_size).streaming_split(world_size, equal=True)
    rows: list[list[np.ndarray]] = [[] for _ in parts]

    def read(rank):
        for block in opened(parts[rank].iter_batches(batch_size=None, batch_format="numpy")):
            pictures = np.array([digest(image) for image in block["image"]])
            rows[rank].append(np.stack([block["epoch"], block["id"], block["base"], pictures], axis=1))

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


def test_workers_train_on_the_same_epoch_also_where_a_task_could_hold_all_of_it(stream):
    whole = dataclasses.replace(stream, task_mb=32, total_samples=8 * ROWS)
    epochs = [part[:, 0] for part in received(whole, 0, Ledger(ROWS), 2)]
    steps = min(map(len, epochs)) // 32
    mixed = [len(np.unique([part[32 * step : 32 * step + 32] for part in epochs])) > 1 for step in range(steps)]
    assert sum(mixed) < steps / 4  # where one epoch ends and the next begins; all of them, were an epoch dealt whole


def after(stream, steps, rows):
    """The ledger after so many steps of one worker's `rows`."""
    ledger = Ledger(ROWS)
    done = rows[: steps * stream.step_rows]
    for epoch in np.unique(done[:, 0]):
        ledger.mark(int(epoch), done[done[:, 0] == epoch, 1])
    return ledger


def test_in_order_one_worker_has_the_plan(ordered, planned):
    assert len(planned) % 64 == 0 and np.count_nonzero(planned[:, 1] == FILLER) < 64
    real = planned[planned[:, 1] != FILLER]
    assert [int(epoch) for epoch, _ in itertools.groupby(real[:, 0])] == [0, 1, 2]
    assert len(np.unique(real[:, :2], axis=0)) == len(real) == ordered.total_samples
    assert (np.where(real[:, 3] >> 32 == 28, 0, 1) == (np.arange(len(real)) >= 75 * 64)).all()


def test_in_order_two_runs_give_each_worker_the_same_rows_and_pictures(ordered, straight):
    again = received(ordered, 0, Ledger(ROWS), 2)
    assert [part.tolist() for part in again] == [part.tolist() for part in straight]
    assert straight[0][:, 1].tolist() != straight[1][:, 1].tolist()


@pytest.mark.parametrize("steps", [62, 76, 139])
def test_in_order_a_killed_run_goes_on_as_it_would_have(ordered, planned, straight, steps):
    """At the end of an epoch (row 4,000 is in step 62), at the change of size, before the end."""
    rest = received(ordered, steps, after(ordered, steps, planned), 2)
    for before, now in zip(straight, rest, strict=True):
        assert now[:, [0, 1, 3]].tolist() == before[steps * 32 :, [0, 1, 3]].tolist()
        assert set(now[:, 2].tolist()) == {steps}


def test_in_order_a_step_has_the_same_rows_whatever_the_number_of_workers(ordered, planned):
    """Begun by one worker, gone on with by four."""
    parts = [part[:, :2] for part in received(ordered, 110, after(ordered, 110, planned), 4)]
    for step in range(110, 140):
        rows = np.concatenate([part[(step - 110) * 16 : (step - 109) * 16] for part in parts])
        assert sorted(rows.tolist()) == sorted(planned[step * 64 : (step + 1) * 64, :2].tolist())


def test_a_finished_run_still_tells_every_worker_where_it_stands(stream):
    ledger = Ledger(ROWS)
    for epoch in (0, 1):
        ledger.mark(epoch, np.arange(ROWS))
    (whole,) = received(stream, 0, Ledger(ROWS), 1)
    ledger.mark(2, whole[whole[:, 0] == 2, 1])
    parts = received(stream, 140, ledger, 2)
    assert [part[:, :3].tolist() for part in parts] == [[[FILLER, FILLER, 140]], [[FILLER, FILLER, 140]]]


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


def test_data_tasks_leave_what_a_task_of_evaluation_holds(stream):
    dataset = build_dataset(dataclasses.replace(stream, evaluation_cpus=0.125), 0, Ledger(ROWS), 1)
    assert dataset._logical_plan.dag.ray_remote_args["num_cpus"] == 0.875


@pytest.mark.parametrize(
    ("worker_rows", "rows"), [(0, 111), (32, 111), (256, 256), (4096, 445)], ids=["unknown", "few", "a step", "many"]
)
def test_a_block_has_what_a_worker_takes_in_a_step_within_bounds(stream, worker_rows, rows):
    """So that the actor that hands out blocks has few of them to hand out (docs/scaling.md)."""
    manifest = SimpleNamespace(splits={"train": 1_281_167})
    large = dataclasses.replace(stream, manifest=manifest, worker_rows=worker_rows, sizes=((0, 224),))
    assert large.block_rows(224) == rows
