"""Weights from and for other libraries, as flat maps of names to tensors; reading files is the caller's.

Our names are torchvision's for what torchvision has. timm's ResNet differs in its attention, its `resnetv2`
(pre-activation) in everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from resnet_core.faults import refuse

_HEAD = "fc."
_SHOWN = 5  # names of a fault
_TORCHVISION = re.compile(r"(conv1|bn1|fc|layer[1-4]\.\d+\.((conv|bn)[1-3]|downsample\.[01]))\.\w+")

# modules, ours and those of timm's resnetv2; its blocks are stages.0.blocks.0 where ours are layer1.0
_RESNETV2 = {
    "conv1": "stem.conv",
    "conv1.0": "stem.conv1",
    "conv1.1": "stem.norm1",
    "conv1.3": "stem.conv2",
    "conv1.4": "stem.norm2",
    "conv1.6": "stem.conv3",
    "fc": "head.fc",
}
_FROM_RESNETV2 = {theirs: ours for ours, theirs in _RESNETV2.items()}


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, new_head: bool = False) -> None:
    """Put `tensors`, in our names, into the model, cast to its types.

    new_head: leave the last layer as the model has it, whatever `tensors` say: for other classes.

    Raises:
        ValueError: before anything is changed, naming the tensors that are missing, unexpected or misshapen. Counts
            of batches that norms have seen may be missing: nothing is computed from them.
    """
    mine, theirs = (
        {name: tensor for name, tensor in each.items() if not (new_head and name.startswith(_HEAD))}
        for each in (model.state_dict(), tensors)
    )
    faults = {
        "missing": [name for name in mine if name not in theirs and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in theirs if name not in mine],
        "misshapen": [
            f"{name} ({list(theirs[name].shape)}, not {list(mine[name].shape)})"
            for name in mine
            if name in theirs and theirs[name].shape != mine[name].shape
        ],
    }
    refuse(faults, shown=_SHOWN)
    with torch.no_grad():
        for name, tensor in theirs.items():
            mine[name].copy_(tensor)


def to_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors by torchvision's names; ValueError naming those that torchvision has no place for."""
    refuse({"non-torchvision": [name for name in tensors if not _TORCHVISION.fullmatch(name)]}, shown=_SHOWN)
    return dict(tensors)


def from_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torchvision's ResNet by our names; ValueError naming those that are not of such a network."""
    return to_torchvision(tensors)


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors by timm's names: those of its `resnetv2` for a pre-activation network, else of its `resnet`."""
    if "norm.weight" not in tensors:
        return {
            name.replace(".attention.spatial.", ".se.spatial.conv.").replace(".attention.", ".se."): tensor
            for name, tensor in tensors.items()
        }
    renamed = {_to_resnetv2(name): tensor for name, tensor in tensors.items()}
    return {name: tensor[..., None, None] if name == "head.fc.weight" else tensor for name, tensor in renamed.items()}


def from_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of timm's `resnet` or `resnetv2` by our names; names that it does not know stay what they are."""
    if not any(name.startswith("stages.") for name in tensors):
        return {
            name.replace(".se.spatial.conv.", ".attention.spatial.").replace(".se.", ".attention."): tensor
            for name, tensor in tensors.items()
        }
    renamed = {_from_resnetv2(name): tensor for name, tensor in tensors.items()}
    return {name: tensor.flatten(1) if name == "fc.weight" else tensor for name, tensor in renamed.items()}


def _to_resnetv2(name: str) -> str:
    if block := re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", name):
        stage, index, rest = block.groups()
        return f"stages.{int(stage) - 1}.blocks.{index}.{re.sub('^bn', 'norm', rest)}"
    module, _, role = name.rpartition(".")
    return f"{_RESNETV2.get(module, module)}.{role}"


def _from_resnetv2(name: str) -> str:
    if block := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", name):
        stage, index, rest = block.groups()
        return f"layer{int(stage) + 1}.{index}.{re.sub('^norm', 'bn', rest)}"
    module, _, role = name.rpartition(".")
    return f"{_FROM_RESNETV2.get(module, module)}.{role}"
