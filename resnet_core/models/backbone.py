"""A network as the backbone of another task: without its last layer, and with the features that heads read.

Shapes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from resnet_core.models.resnet import ResNet


def remove_head(network: ResNet) -> None:
    """Remove the last layer and the dropout before it, in place; `ResNet.features` does not change.

    A parameter that no loss reaches would stop DistributedDataParallel, and would be saved for nothing.
    """
    network.add_module("fc", nn.Identity())
    network.dropout = 0.0


def head_features(network: ResNet, images_BCHW: Tensor) -> dict[str, Tensor]:
    """Return `ResNet.features`; the last output of a pre-activation network is normalized and activated."""
    features = network.features(images_BCHW)
    last = list(features)[-1]
    features[last] = network.act(network.norm(features[last]))
    return features
