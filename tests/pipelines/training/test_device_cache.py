"""A data set on the device: its steps are those of an ordered stream, whatever the workers and the restarts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from rich.console import Console

from infra.errors import UserError
from infra.storage import LocalStore, open_store
from pipelines.checkpoint import RunFolder
from pipelines.config.crop import CropConfig
from pipelines.config.prepare import PrepareConfig
from pipelines.config.recipe import load_recipe
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import plan_items
from pipelines.data.prepare.sources import open_source
from pipelines.data.tasks.crops import load_item
from pipelines.training.batches import RankBatches, Steps
from pipelines.training.device_cache import device_cache_blocks, load_device_cache
from pipelines.training.device_decode import DeviceImages
from pipelines.training.driver import train
from pipelines.training.stream import Stream
from tests.pipelines.conftest import written

CPU = torch.device("cpu")
ROWS, TOTAL, BATCH = 4000, 9001, 96  # the last step has 73 rows more


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    root = tmp_path_factory.mktemp("resident")
    store = LocalStore(uri=str(root / "data"))
    return Stream(
        manifest=written(open_source("mnist5k"), store, PrepareConfig()),
        data_uri=store.uri,
        run_uri=open_store(str(root / "run")).uri,
        crop=CropConfig(image_size=28, train_crop="pad", pad=2, eval_resize=28),
        sizes=((0, 20), (4500, 28)),
        split="train",
        seed=0,
        total_samples=TOTAL,
        step_rows=BATCH,
        task_mb=4,
        ordered=True,
    )


@pytest.fixture(scope="module")
def resident(stream):
    torch.set_num_threads(1)
    return load_device_cache(stream, CPU)


def feeds_of(stream, resident, world_size, repeats=1):
    steps = Steps(
        total_samples=TOTAL,
        total_steps=TOTAL // BATCH,
        global_batch_size=BATCH * repeats,
        world_size=world_size,
        microbatch_size=0,
        repeats=repeats,
    )
    maker = DeviceImages(device=CPU, cached_NHWC=resident.images_NHWC)
    ranks = range(world_size)
    return [RankBatches(device_cache_blocks(stream, resident, steps, rank), steps, CPU, maker) for rank in ranks]


def marks_by_step(feeds, start=0):
    """(epoch, id) of the samples of each step, all ranks one after another."""
    for feed in feeds:
        assert feed.base() == start
    for shares in zip(*(feed.from_step(start) for feed in feeds), strict=True):
        assert len({share.count for share in shares}) == 1
        yield np.concatenate([feed.drain_marks() for feed in feeds]).tolist()


def planned(stream, ledger):
    """(epoch, id) of every row, in the order in which one worker gets them from an ordered stream, and its image."""
    for item in plan_items(stream.plan, ledger):
        config = stream.config(10_000)
        for block in load_item(open_store(stream.data_uri), stream.manifest, item, config):
            yield from zip(block["epoch"].tolist(), block["id"].tolist(), block["image"], strict=True)


def test_the_split_is_read_whole_in_the_order_of_its_ids(stream, resident):
    assert resident.images_NHWC.shape == (ROWS, 28, 28, 1)
    config = dataclasses.replace(stream.config(10_000), train=False)
    item = dataclasses.replace(next(plan_items(stream.plan, Ledger(ROWS))), image_size=28)
    (block,) = load_item(open_store(stream.data_uri), stream.manifest, item, config)
    places = block["id"] - stream.manifest.split_start("train")
    assert (resident.images_NHWC[places].numpy() == block["image"][..., :1]).all()
    assert resident.labels[places].tolist() == block["label"].tolist()


def test_one_worker_gets_the_rows_and_the_pixels_of_an_ordered_stream(stream, resident):
    expected = list(planned(stream, Ledger(ROWS)))
    (feed,) = feeds_of(stream, resident, 1)
    assert feed.base() == 0
    at = 0
    for share in feed.from_step(0):
        images = [image for batch in share.microbatches for image in batch.images_BHWC]
        marks = feed.drain_marks().tolist()
        assert len(images) == len(marks) == share.count
        for mark, image, (epoch, sample, pixels) in zip(marks, images, expected[at : at + share.count], strict=True):
            assert mark == [epoch, sample]
            assert np.array_equal(image.numpy(), pixels)  # nothing is resized here
        at += share.count
    assert at == TOTAL


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_makes_the_same_steps(stream, resident, world_size):
    alone = list(marks_by_step(feeds_of(stream, resident, 1)))
    assert list(marks_by_step(feeds_of(stream, resident, world_size))) == alone
    assert [len(step) for step in alone] == [BATCH] * (TOTAL // BATCH - 1) + [BATCH + TOTAL % BATCH]


class Newest:
    """A run folder whose newest checkpoint is of this step."""

    def __init__(self, step, ledger):
        self.step, self.ledger = step, ledger.to_arrays()


def test_a_run_goes_on_with_the_steps_that_are_left(stream, resident, monkeypatch):
    whole = list(marks_by_step(feeds_of(stream, resident, 2)))
    for done in (1, 50, len(whole)):
        ledger = Ledger(ROWS)
        for epoch, sample in (mark for step in whole[:done] for mark in step):
            ledger.mark(epoch, np.array([sample]))
        newest = Newest(done, ledger)
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "newest", lambda *_, newest=newest: newest)
            assert list(marks_by_step(feeds_of(stream, resident, 3), start=done)) == whole[done:]


def test_views_of_a_sample_share_a_step(stream, resident):
    crop = dataclasses.replace(stream.crop, repeats=2)
    repeated = dataclasses.replace(stream, crop=crop)
    (feed,) = feeds_of(repeated, resident, 1, repeats=2)
    feed.base()
    share = next(feed.from_step(0))
    assert sum(len(batch) for batch in share.microbatches) == 2 * BATCH
    marks = feed.drain_marks()
    assert len(marks) == BATCH
    labels = torch.cat([batch.labels_B for batch in share.microbatches])
    assert labels.tolist() == 2 * resident.labels[marks[:, 1]].tolist()


def test_only_raw_pixels_cropped_on_the_device_can_stay_there(tmp_path):
    with pytest.raises(UserError, match=r'data\.device_cache needs data\.decode_on = "device"'):
        load_recipe("mnist5k", {"data.uri": "x", "data.device_cache": True})
    settings = {
        "data.source": "",
        "data.decode_on": "device",
        "data.device_cache": True,
        "run.home": str(tmp_path / "runs"),
    }
    (tmp_path / "images" / "a").mkdir(parents=True)
    from tests.pipelines.data.conftest import encoded, picture

    for index in range(8):
        (tmp_path / "images" / "a" / f"{index}.jpg").write_bytes(encoded(picture(20, 20, index)))
    store = LocalStore(uri=str(tmp_path / "data"))
    manifest = written(open_source(str(tmp_path / "images"), holdout=0.5), store)
    store.write("manifest.json", manifest.to_json().encode())
    recipe = load_recipe("mnist5k", {**settings, "data.uri": store.uri})
    with pytest.raises(UserError, match=r"data\.device_cache needs raw pixels"):
        train(recipe, Console(quiet=True))


def test_trained_from_the_device_the_weights_are_those_of_the_stream(
    tmp_path, tmp_path_factory, ray_local, monkeypatch
):
    """Data tasks, crops on the device and a resident data set, each to step 12; the last one with a restart."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = tmp_path_factory.getbasetemp() / "mnist5k"
    common: dict[str, object] = {
        "data.uri": str(data),
        "prepare.validation": 0,  # `data` is test_train.py's too
        "data.ordered": True,
        "run.home": str(tmp_path),
        "run.num_workers": 0,
        "run.checkpoint_every_steps": 5,
        "run.register_as": "",
        "schedule.unit": "steps",
        "schedule.length": 12,
        "schedule.warmup": 0,
    }
    modes: dict[str, dict[str, object]] = {
        "host": {},
        "device": {"data.decode_on": "device"},
        "resident": {"data.decode_on": "device", "data.device_cache": True},
    }
    weights = {}
    for name, settings in modes.items():
        recipe = load_recipe("mnist5k", {**common, **settings, "run.name": name})
        if name == "resident":
            written_before = RunFolder.write

            def die_after_two(self, checkpoint, *, keep_best, written=written_before):
                written(self, checkpoint, keep_best=keep_best)
                if checkpoint.step == 10:
                    raise OSError("power cut")

            with monkeypatch.context() as patch:
                patch.setattr(RunFolder, "write", die_after_two)
                with pytest.raises(Exception, match="power cut"):
                    train(recipe, Console(quiet=True))
        train(recipe, Console(quiet=True))
        newest = RunFolder(open_store(str(tmp_path)).sub(name)).newest(pytest.fail)
        assert newest is not None
        weights[name] = newest.tensors["model"]
    for name in ("device", "resident"):
        assert [key for key, value in weights["host"].items() if not value.equal(weights[name][key])] == []
