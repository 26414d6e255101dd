"""The feed on a device: what reaches the step is whole and right, and the host waits for nothing."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from benchmarks.blocks import host_block, jpeg_block, raw_block, renumbered
from pipelines.data.images.pillow import decode_rgb
from pipelines.training.device_decode import DeviceImages
from resnet_core.crop_resize import WINDOW, resample
from tests.gpu.training import CLASSES, busy, feed_of, new_state, no_waiting, sizes, take_step


def smooth(sample: int) -> Image.Image:
    """Of a size of its own, without detail that decoders may differ on."""
    coarse = np.random.default_rng(sample).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    sides = (40 + 7 * (sample % 9), 36 + 5 * (sample % 11))
    return Image.fromarray(coarse).resize(sides, Image.Resampling.BICUBIC)


def labels(ids) -> list[int]:
    return [sample % CLASSES for sample in ids]


def test_no_step_waits_for_the_device(device):
    """Neither the training thread nor the feed's: `set_sync_debug_mode` holds for both."""
    wanted = sizes(device)
    total = (wanted.steps + 4) * wanted.batch
    ids = range(wanted.batch)
    made = [
        host_block(ids, wanted.size, labels(ids)),
        raw_block(ids, wanted.size + 8, wanted.size, labels(ids), smooth),
    ]
    state = new_state(device)
    feed = feed_of(renumbered(made, total), total, wanted.batch, device)
    shares = feed.from_step(feed.base())
    sums = [take_step(state, next(shares)) for _ in range(4)]  # cuDNN tries its algorithms, buffers are locked
    with no_waiting(device):
        sums += [take_step(state, share) for share in shares]
    assert len(sums) == wanted.steps + 4
    assert all(torch.isfinite(each.loss) for each in sums)
    assert sorted(feed.drain_marks()[:, 1].tolist()) == list(range(total))


def test_crops_are_those_of_the_host(device):
    """Raw pixels to the level; JPEGs but for what decoders round."""
    ids, size = range(24), 32
    for block, most, mean in (
        (raw_block(ids, 48, size, labels(ids), smooth), 1, 0.5),
        (jpeg_block(ids, size, labels(ids), smooth), 1 if device.type == "cpu" else 16, 1.5),
    ):
        images = [decode_rgb(data) if isinstance(data, bytes) else data for data in block["image"]]
        windows = torch.from_numpy(block["window"]).view(-1, *WINDOW)
        expected = [
            resample(torch.tensor(image)[None], window[None], size)[0]
            for image, window in zip(images, windows, strict=True)
        ]
        crops = DeviceImages(device=device).crops([block]).cpu()
        apart = (crops.int() - torch.stack(expected).int()).abs().float()
        assert (float(apart.max()) <= most, float(apart.mean()) <= mean) == (True, True), apart.max()


def plain(sample: int) -> Image.Image:
    """One colour, told by the sample's id, in an image of a size of its own."""
    sides = (64 + 16 * (sample % 13), 48 + 16 * (sample % 17))
    return Image.new("RGB", sides, colour(sample))


def colour(sample: int) -> tuple[int, int, int]:
    return (40 + 37 * sample % 200, 30 + 53 * sample % 200, 20 + 71 * sample % 200)


def test_nvjpeg_overwrites_no_image_in_use(device):
    """Steps of two image sizes decode twice each, into memory that crops have just given back, beside a busy step.

    Every crop has to be of its own sample's colour: another colour, or half of one, is memory that was overwritten.
    """
    batch, rounds = (128, 150) if device.type == "cuda" else (8, 3)
    half = batch // 2
    made = [
        jpeg_block(range(half * place, half * (place + 1)), size, list(range(half * place, half * (place + 1))), plain)
        for place, size in enumerate((64, 96) * 4)
    ]
    colours = torch.tensor([colour(sample) for sample in range(half * len(made))], device=device)
    feed = feed_of(renumbered(made, batch * rounds), batch * rounds, batch, device)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    with busy(device) as work:
        for share in feed.from_step(feed.base()):
            assert len(share.microbatches) == 2
            for microbatch in share.microbatches:
                work()
                apart = (microbatch.images_BHWC.int() - colours[microbatch.labels_B][:, None, None]).abs()
                wrong += (apart.amax(dim=(1, 2, 3)) > 6).sum()
    assert int(wrong) == 0


def test_a_jpeg_that_the_device_refuses_is_the_hosts(device):
    """One cut short is bad; the others of its batch are trained on."""
    ids = list(range(16))
    block = jpeg_block(ids, 32, labels(ids), smooth)
    block["image"][5] = block["image"][5][:40]
    feed = feed_of(iter([block]), 16, 16, device)
    (share,) = feed.from_step(feed.base())
    assert [len(batch) for batch in share.microbatches] == [15]
    assert [sample for sample, _, _ in feed.drain_bad()] == [5]


def test_progressive_and_grey_jpegs_are_decoded(device):
    """nvJPEG does these without the JPEG engine."""
    ids = list(range(8))
    block = jpeg_block(ids, 32, labels(ids), smooth)
    for place, (mode, progressive) in enumerate([("L", False), ("RGB", True)]):
        buffer = io.BytesIO()
        smooth(place).convert(mode).save(buffer, "JPEG", progressive=progressive)
        block["image"][place] = buffer.getvalue()
    crops = DeviceImages(device=device).crops([block]).cpu()
    assert crops.shape == (8, 32, 32, 3)
    grey = crops[0].int()
    assert int((grey - grey[..., :1]).abs().max()) <= 1
