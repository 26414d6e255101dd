"""Activation checkpointing changes memory, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from resnet_core.models import set_generator
from tests.resnet_core.models.conftest import small

KINDS: list[dict[str, Any]] = [
    {},
    {"block": "bottleneck", "block_order": "pre", "attention": "cbam"},
    {"attention": "se", "activation": "silu", "blur_pool": True},
]


def one_step(*, checkpointing: bool, backend: str | None = None, **fields: Any) -> dict[str, torch.Tensor]:
    """Output, gradients and buffers of a training step with stochastic depth and dropout."""
    regularization = {"drop_path": 0.5, "dropout": 0.3, "activation_checkpointing": checkpointing}
    model = small(regularization=regularization, **fields).train()
    set_generator(model, torch.Generator().manual_seed(7))
    forward = torch.compile(model, backend=backend) if backend else model
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    logits = forward(images)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {"logits": logits.detach(), **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_outputs_gradients_and_statistics_are_bit_identical(fields: dict[str, Any]) -> None:
    kept, recomputed = one_step(checkpointing=False, **fields), one_step(checkpointing=True, **fields)
    assert kept.keys() == recomputed.keys()
    assert [name for name, tensor in kept.items() if not torch.equal(tensor, recomputed[name])] == []
    counts = [int(tensor) for name, tensor in recomputed.items() if name.endswith("num_batches_tracked")]
    assert set(counts) == {1}


def test_a_block_s_inside_is_computed_twice() -> None:
    calls = []
    model = small(regularization={"activation_checkpointing": True}).train()
    model.get_submodule("layer1.0.conv1").register_forward_hook(lambda *_: calls.append(1))
    logits = model(torch.randn(2, 3, 8, 8))
    assert len(calls) == 1
    logits.sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        model.eval()(torch.randn(2, 3, 8, 8))
    assert len(calls) == 3


def test_a_compiled_network_updates_its_statistics_once() -> None:
    eager, compiled = (
        one_step(checkpointing=True),
        one_step(checkpointing=True, backend="aot_eager"),
    )
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, msg=name)
