"""Fine-tuning: parts of a network that do not train, and factors of the learning rate that depend on the depth.

A frozen part has no gradient, no backward pass and no optimizer state. Its norms are in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from resnet_core.config.model import FrozenTo
from resnet_core.models.resnet import ResNet

_HEAD = "fc"
_STEM = ("conv1", "bn1", "act1", "maxpool")
_END = ("norm", "act")  # after the last stage of a pre-activation network


def freeze(model: ResNet, last: FrozenTo) -> None:
    """Freeze the stem and the stages up to `last`, in place, and let all other parts train.

    Weights and statistics do not change. With the last stage, only the last layer trains.
    """
    model.frozen = tuple(_parts(model, last))
    model.requires_grad_(True)
    for name in model.frozen:
        model.get_submodule(name).requires_grad_(False)
    model.train(model.training)


def freeze_all_but_head(model: ResNet) -> None:
    """Let only the last layer train."""
    freeze(model, model.stages[-1])  # type: ignore[arg-type]  # stages have these names


def frozen_modules(model: nn.Module) -> set[nn.Module]:
    """Return every module of the frozen parts of the networks in `model`."""
    networks = [module for module in model.modules() if isinstance(module, ResNet)]
    parts = (network.get_submodule(name) for network in networks for name in network.frozen)
    return {module for part in parts for module in part.modules()}


def lr_factors(model: ResNet, *, head: float, layer_decay: float) -> dict[nn.Parameter, float]:
    """Return the factor of the learning rate of each parameter.

    The last layer has `head`. From there down, each block has `layer_decay` times the factor of the one after it, and
    the stem that of the first block times `layer_decay`, as in timm's `param_groups_layer_decay`.
    """
    factors = dict.fromkeys(model.parameters(), 1.0)
    blocks = model.blocks()
    for index, (_, block) in enumerate(blocks):
        factors.update(dict.fromkeys(block.parameters(), layer_decay ** (len(blocks) - index)))
    for name in _STEM:
        factors.update(dict.fromkeys(model.get_submodule(name).parameters(), layer_decay ** (len(blocks) + 1)))
    factors.update(dict.fromkeys(model.get_submodule(_HEAD).parameters(), head))
    return factors


def _parts(model: ResNet, last: FrozenTo) -> Iterator[str]:
    if not last:
        return
    yield from _STEM
    stages = model.stages[: model.stages.index(last) + 1] if last != "stem" else []
    yield from stages
    if stages == model.stages:
        yield from _END
