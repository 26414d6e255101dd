"""Images made on the device from records are those that data tasks make: same samples, same crops, same pixels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.io import decode_jpeg

from infra.errors import UserError
from infra.storage import LocalStore, open_store
from pipelines.config.crop import CropConfig
from pipelines.config.prepare import PrepareConfig
from pipelines.config.recipe import load_recipe
from pipelines.data.images.pillow import DecodeError, decode_rgb
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import Plan, plan_items
from pipelines.data.prepare.sources import open_source
from pipelines.data.tasks.crops import TaskConfig, load_item
from pipelines.data.tasks.encoded import load_undecoded, look
from pipelines.data.tasks.timing import StageClock
from pipelines.training.batches import RankBatches, Steps
from pipelines.training.device_decode import REFUSED, DeviceImages, UndecodableError
from pipelines.training.device_jpeg import Flat, copied_one_by_one, from_pixels, gathered
from pipelines.training.device_jpeg import _of_an_image as of_an_image
from pipelines.training.ordered import opened
from pipelines.training.side_stream import SideStream
from pipelines.training.stream import Stream, build_dataset
from tests.pipelines.conftest import written
from tests.pipelines.data.conftest import encoded, picture

CPU = torch.device("cpu")
FORMS = [("raw", 20), ("jpeg", 18), ("original", 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 24 pictures of differing sizes: JPEGs in colour and in grey, a CMYK one and PNGs among them."""
    root = tmp_path_factory.mktemp("images")
    for name in ("a", "b"):
        (root / name).mkdir()
        for index in range(24):
            image = picture(22 + 3 * index, 60 - 2 * index, seed=index)
            kind = {3: ("L", "JPEG"), 5: ("CMYK", "JPEG"), 7: ("RGB", "PNG")}.get(index, ("RGB", "JPEG"))
            (root / name / f"{index:03d}.jpg").write_bytes(encoded(image.convert(kind[0]), kind[1]))
    return root


@pytest.fixture(scope="module", params=FORMS, ids=[form for form, _ in FORMS])
def data(request, folder, tmp_path_factory):
    form, size = request.param
    store = LocalStore(uri=str(tmp_path_factory.mktemp(form)))
    config = PrepareConfig(form=form, size=size, holdout=0.25, min_shards=2)
    return store, written(open_source(str(folder), holdout=0.25), store, config)


def loaded(load, store, manifest, config, sizes=((0, 16),)):
    plan = Plan(manifest=manifest, split="train", seed=3, total_samples=60, item_rows=10, sizes=sizes)
    items = list(plan_items(plan, Ledger(manifest.splits["train"])))
    return [block for item in items for block in load(store, manifest, item, config)]


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("kind", ["random_resized", "scale_jitter", "pad", "center"])
def test_crops_of_the_device_equal_those_of_data_tasks(data, kind, repeats):
    torch.set_num_threads(1)
    crop = CropConfig(image_size=16, train_crop=kind, repeats=repeats, eval_resize=18, jitter_min=17, jitter_max=30)
    config = TaskConfig(crop=crop, train=True, seed=3, rows_per_block=7)
    sizes = ((0, 16), (36, 24))  # of the first and of the second epoch
    store, manifest = data
    host = loaded(load_item, store, manifest, config, sizes)
    device = loaded(load_undecoded, store, manifest, config, sizes)
    assert [len(block["id"]) for block in device] == [len(block["id"]) for block in host]
    assert {int(block["size"][0]) for block in device} == {16, 24}
    for expected, rows in zip(host, device, strict=True):
        for name in ("id", "epoch", "label"):
            assert rows[name].tolist() == expected[name].tolist()
        images = DeviceImages(device=CPU).crops([rows]).numpy()
        views = expected["image"] if repeats == 1 else expected["image"].swapaxes(0, 1).reshape(images.shape)
        assert images.dtype == np.uint8 and images.shape == views.shape
        assert np.abs(images.astype(int) - views.astype(int)).max() <= 1


def test_only_what_a_device_may_not_know_is_decoded_by_the_task(data):
    _, manifest = data
    image = picture(40, 30)
    if manifest.stored.form == "raw":
        assert look(bytes(1200), manifest.stored).coded is False
        with pytest.raises(DecodeError, match="1,000 bytes, expected 20x20x3"):
            look(bytes(1000), manifest.stored)
        return
    coded = encoded(image)
    assert look(coded, manifest.stored).data is coded
    assert look(encoded(image.convert("L")), manifest.stored).coded
    odd = look(encoded(image, "PNG"), manifest.stored)
    assert (odd.coded, odd.width, odd.height, len(odd.data)) == (False, 40, 30, 3600)


@pytest.mark.parametrize("data", FORMS[1:], ids=["jpeg", "original"], indirect=True)
def test_a_jpeg_that_does_not_decode_is_named(data):
    store, manifest = data
    config = TaskConfig(crop=CropConfig(image_size=16), train=True, seed=3, rows_per_block=7)
    rows = loaded(load_undecoded, store, manifest, config)[0]
    place = int(np.flatnonzero(rows["coded"])[2])
    rows["image"][place] = rows["image"][place][:-200]
    with pytest.raises(UndecodableError) as caught:
        DeviceImages(device=CPU).crops([rows])
    assert [(found, "truncated" in reason) for found, reason in caught.value.reasons.items()] == [(place, True)]
    blank = {name: np.full(len(rows["id"]), "", dtype=object) for name in ("bad", "warning")}
    told = {"base": np.zeros(len(rows["id"]), dtype=np.int64), **StageClock().columns(len(rows["id"])), **blank}
    count = len(rows["id"])
    steps = Steps(total_samples=count, total_steps=1, global_batch_size=count, world_size=1, microbatch_size=0)
    feed = RankBatches([{**rows, **told}], steps, CPU)
    (share,) = feed.from_step(0)
    assert [batch.labels_B.tolist() for batch in share.microbatches] == [np.delete(rows["label"], place).tolist()]
    assert feed.drain_marks()[:, 1].tolist() == rows["id"].tolist()
    ((sample, epoch, note),) = feed.drain_bad()
    assert (sample, epoch, json.loads(note)[0]) == (rows["id"][place], 0, "undecodable")


def test_large_and_small_images_are_not_padded_to_the_same_array(monkeypatch):
    from pipelines.training import device_decode as module

    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 1000)
    heights, widths = (np.array(sides, dtype=np.int32) for sides in ([10, 100, 20, 10, 5], [10, 100, 20, 12, 5]))
    assert [group.tolist() for group in module._of_similar_size(heights, widths)] == [[4, 0, 3], [2], [1]]


def test_images_of_several_sizes_are_put_into_one_array_by_an_index_as_by_slices():
    """Planar ones of a decoder, and pixels of the host."""
    draws = np.random.default_rng(0)
    shapes, stream = [(5, 9), (7, 3), (1, 1), (7, 9)], SideStream(CPU)
    images = [draws.integers(1, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    planar = [
        Flat(torch.from_numpy(image.transpose(2, 0, 1).copy()).reshape(-1), height, width, planar=True)
        for image, (height, width) in zip(images, shapes[:2], strict=False)
    ]
    pictures = [*planar, *from_pixels([images[2].tobytes(), images[3]], shapes[2:], stream)]
    for made in (gathered(pictures, stream), copied_one_by_one(pictures)):
        assert (made.shape, made.dtype) == ((4, 7, 9, 3), torch.uint8)
        for image, own in zip(images, made.numpy(), strict=True):
            assert np.array_equal(own[: image.shape[0], : image.shape[1]], image)


class NvJpeg:
    """A decoder that fails as torchvision's does on a GPU: as a whole, and without saying which image it was."""

    def __init__(self, refused, message):
        self.refused, self.message, self.calls = refused, message, 0

    def __call__(self, encoded, mode, device):
        self.calls += 1
        if any(bytes(data.numpy()) in self.refused for data in encoded):
            raise RuntimeError(f"Error while decoding JPEG images: {self.message}")
        return [decode_jpeg(data, mode=mode) for data in encoded]


def on_a_gpu(monkeypatch, nvjpeg):
    """Decode with this decoder, and judge its errors as a GPU's."""
    monkeypatch.setattr("torchvision.io.decode_jpeg", nvjpeg)
    monkeypatch.setattr(
        "pipelines.training.device_jpeg._of_an_image", lambda error, _: of_an_image(error, torch.device("cuda"))
    )


@pytest.mark.parametrize("data", FORMS[1:2], ids=["jpeg"], indirect=True)
def test_only_the_images_that_the_device_refuses_are_decoded_by_the_host_and_it_is_told_once(data, monkeypatch):
    store, manifest = data
    config = TaskConfig(crop=CropConfig(image_size=16), train=True, seed=3, rows_per_block=20)
    rows = loaded(load_undecoded, store, manifest, config)[0]
    expected = DeviceImages(device=CPU).crops([rows])
    refused = {rows["image"][place] for place in (1, 7)}
    nvjpeg = NvJpeg(refused, "Failed to decode jpeg stream: 4")
    on_a_gpu(monkeypatch, nvjpeg)
    on_host, told = [], []

    def watched(image):
        on_host.append(image)
        return decode_rgb(image)

    monkeypatch.setattr("pipelines.training.device_decode.decode_rgb", watched)
    crops = DeviceImages(device=CPU).crops([rows], warn=told.append)
    assert set(on_host) == refused and len(on_host) == 2
    assert int((crops.int() - expected.int()).abs().max()) <= 1
    assert set(told) == {REFUSED}
    assert nvjpeg.calls <= 1 + 2 * 2 * 5  # halves of halves, for each of the two


@pytest.mark.parametrize(
    "message",
    ["torch_empty API call failed at alloc.cpp, line 1", "Failed to decode batch: 5", "CUDA error: an illegal"],
)
@pytest.mark.parametrize("data", FORMS[1:2], ids=["jpeg"], indirect=True)
def test_an_error_that_is_no_images_fault_goes_up(data, message, monkeypatch):
    """Memory that ran out, a failed kernel: the host must not quietly take over the decoding of every step."""
    store, manifest = data
    config = TaskConfig(crop=CropConfig(image_size=16), train=True, seed=3, rows_per_block=20)
    rows = loaded(load_undecoded, store, manifest, config)[0]
    on_a_gpu(monkeypatch, NvJpeg({rows["image"][3]}, message))
    with pytest.raises(RuntimeError, match=message[:20]):
        DeviceImages(device=CPU).crops([rows])


def test_records_go_through_ray_to_the_shares_of_two_workers(data, ray_local, tmp_path):
    store, manifest = data
    crop = CropConfig(image_size=16)
    stream = Stream(
        manifest=manifest,
        data_uri=store.uri,
        run_uri=open_store(str(tmp_path / "run")).uri,
        crop=crop,
        sizes=((0, 16),),
        split="train",
        seed=3,
        total_samples=35,
        step_rows=8,
        task_mb=1,
        ordered=True,
        decode_on="device",
    )
    expected = {
        int(sample): image
        for block in loaded(load_item, store, manifest, TaskConfig(crop=crop, train=True, seed=3, rows_per_block=64))
        for epoch, sample, image in zip(block["epoch"], block["id"], block["image"], strict=True)
        if epoch == 0
    }
    parts = build_dataset(stream, 0, Ledger(manifest.splits["train"]), 2).streaming_split(2, equal=True)
    steps = Steps(total_samples=35, total_steps=4, global_batch_size=8, world_size=2, microbatch_size=0)
    blocks: Any = {"batch_size": None, "batch_format": "numpy"}
    feeds = [RankBatches(opened(part.iter_batches(**blocks)), steps, CPU) for part in parts]
    shares = list(zip(*(feed.from_step(0) for feed in feeds), strict=True))
    seen = []
    for feed, of_rank in zip(feeds, zip(*shares, strict=True), strict=True):
        ids = feed.drain_marks()[:, 1].tolist()
        images = [image for share in of_rank for batch in share.microbatches for image in batch.images_BHWC]
        for sample, image in zip(ids, images, strict=True):
            assert np.abs(image.numpy().astype(int) - expected[sample].astype(int)).max() <= 1
        seen += ids
        assert feed.times.device_s > 0
    assert len(seen) == len(set(seen)) == 35


def test_a_policy_of_pillow_has_no_place_on_the_device():
    with pytest.raises(UserError, match=r'data\.policy must be "" where data\.decode_on = "device"'):
        load_recipe("mnist5k", {"data.uri": "x", "data.decode_on": "device", "data.policy": "trivial_augment_wide"})
    with pytest.raises(UserError, match=r"data\.decode_on"):
        load_recipe("mnist5k", {"data.uri": "x", "data.decode_on": "gpu"})
