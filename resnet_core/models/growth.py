"""Growth in depth during training: new blocks at the ends of stages that do not change the network's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from resnet_core.config.variants import Variant, check_growth
from resnet_core.models.blocks import ResidualBlock, build_block
from resnet_core.models.plan import following
from resnet_core.models.resnet import ResNet, initialize, zero_last_scale


def grow(model: ResNet, depths: Sequence[int], generator: torch.Generator | None = None) -> list[nn.Parameter]:
    """Add residual blocks in place until stage i has depths[i] blocks; return their parameters, in order of depth.

    The last scale of a new block is zero, so the block returns its input: outputs do not change at this step, in
    training mode and in evaluation mode. With an activation after the sum this needs relu(x) = x, which holds because
    the block before it ends in the same ReLU. Rates of stochastic depth are spread over all blocks again, so a grown
    network equals one that was built with these depths.

    Weights come from `generator` (None = torch's global one), of which this takes one draw. A block takes device, dtype
    and mode from the block before it.

    Raises:
        ValueError: `depths` removes blocks of a stage, or a new block could not start as the identity.
    """
    check_growth(model.variant, depths)
    parameters: list[nn.Parameter] = []
    with _seeded(generator):
        for stage, depth in zip(model.stages, depths, strict=True):
            blocks = model.get_submodule(stage)
            assert isinstance(blocks, nn.Sequential)
            for _ in range(depth - len(blocks)):
                blocks.append(_zero_block(blocks[-1], model.variant))
                parameters += blocks[-1].parameters()
    model.variant = replace(model.variant, depths=tuple(depths))
    model.spread_drop_rates()
    return parameters


def depths_of(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the number of blocks per stage of the network that a state_dict belongs to."""
    blocks = {name.split(".")[0]: set[str]() for name in tensors if name.startswith("layer")}
    for name in tensors:
        stage, *rest = name.split(".")
        if stage in blocks:
            blocks[stage].add(rest[0])
    return tuple(len(blocks[stage]) for stage in sorted(blocks))


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Seed torch's global CPU generator by a draw from `generator`; restore it afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device if generator else None))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _zero_block(previous: nn.Module, variant: Variant) -> ResidualBlock:
    assert isinstance(previous, ResidualBlock)
    block = build_block(following(previous.plan), variant)
    initialize(block, zero_init_last=False)
    zero_last_scale(block)
    like = next(previous.parameters())
    block.to(device=like.device, dtype=like.dtype).to(memory_format=_memory_format(previous))
    return block.train(previous.training)


def _memory_format(block: nn.Module) -> torch.memory_format:
    """Return the memory format of the block's weights, read from a 3x3 convolution: both formats of a 1x1 are equal."""
    weights = (parameter for parameter in block.parameters() if parameter.dim() == 4 and parameter.shape[-1] > 1)  # noqa: PLR2004
    last = next(weights).is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
