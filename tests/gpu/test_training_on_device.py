"""The core on a device: compiled with growing images, and resumed to the bit."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch

from benchmarks.blocks import host_block, raw_block
from resnet_core.compute import why_not_compiled
from tests.gpu.test_feed_on_device import labels, smooth
from tests.gpu.training import CONFIG, feed_of, new_state, sizes, take_step


@pytest.fixture
def deterministic():
    """Operations whose result may differ from run to run are refused."""
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def stored(tensors) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: tensor.numpy() for name, tensor in tensors.items()})
    return buffer.getvalue()


def loaded(data: bytes) -> dict[str, torch.Tensor]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_a_resumed_training_equals_an_unbroken_one_to_the_bit(device, deterministic):
    """The feed of the second half gets what the marks of the first leave; what was only prepared comes again."""
    wanted = sizes(device)
    batch, steps = wanted.batch, 6
    blocks = [
        raw_block(range(first, first + batch), wanted.size + 8, wanted.size, labels(range(batch)), smooth)
        for first in range(0, batch * steps, batch)
    ]
    whole = new_state(device)
    for share in (feed := feed_of(iter(blocks), batch * steps, batch, device)).from_step(feed.base()):
        take_step(whole, share)

    first = new_state(device)
    feed = feed_of(iter(blocks), batch * steps, batch, device)
    shares = feed.from_step(feed.base())
    for _ in range(3):
        take_step(first, next(shares))
    saved = {group: stored(tensors) for group, tensors in first.snapshot().items()}
    seen = set(feed.drain_marks()[:, 1].tolist())
    shares.close()
    assert seen == set(range(3 * batch))

    second = new_state(device)
    second.load_tensors({group: loaded(data) for group, data in saved.items()})
    second.step = 3
    rest = [block for block in blocks if not seen.issuperset(block["id"].tolist())]
    for share in (feed := feed_of(iter(rest), batch * 3, batch, device)).from_step(feed.base()):
        take_step(second, share)
    expected, found = whole.snapshot(), second.snapshot()
    differing = [
        (group, name)
        for group, tensors in expected.items()
        for name, tensor in tensors.items()
        if not torch.equal(tensor, found[group][name])
    ]
    assert (differing, second.step) == ([], whole.step)


def test_growing_images_compile_to_a_few_graphs(device):
    """One for each size or one for all, and never the silent fall back to eager at torch's limit of 8."""
    if device.type == "cuda" and (reason := why_not_compiled(device)):
        pytest.skip(f"torch.compile does not work here: {reason}")
    wanted = sizes(device)
    import torch._dynamo

    torch._dynamo.reset()
    state, eager = new_state(device, compiled=True), new_state(device)
    growing = [wanted.size, wanted.size, wanted.size + 32, wanted.size + 32, wanted.size + 64, wanted.size + 64]
    blocks = [
        host_block(range(place * wanted.batch, (place + 1) * wanted.batch), size, labels(range(wanted.batch)))
        for place, size in enumerate(growing)
    ]
    counted = torch._dynamo.utils.counters
    counted.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        feed = feed_of(iter(blocks), wanted.batch * 6, wanted.batch, device)
        losses = [(take_step(state, share).loss, take_step(eager, share).loss) for share in feed.from_step(feed.base())]
    assert 1 <= counted["stats"]["unique_graphs"] <= len(set(growing)) + 1
    for compiled, plain in losses:
        torch.testing.assert_close(compiled, plain, rtol=0.02, atol=0)


def test_precision_of_the_step_is_what_it_says(device):
    """In bf16 the logits' loss is close to that in fp32, and the weights stay fp32."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    wanted = sizes(device)
    block = host_block(range(wanted.batch), wanted.size, labels(range(wanted.batch)))
    losses = {}
    for precision in ("fp32", "bf16"):
        state = new_state(device)
        feed = feed_of(iter([block]), wanted.batch, wanted.batch, device)
        (share,) = feed.from_step(feed.base())
        losses[precision] = float(take_step(state, share, dataclasses.replace(CONFIG, precision=precision)).loss)
        assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
