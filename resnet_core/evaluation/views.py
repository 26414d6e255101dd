"""Test-time crops: the prediction for an image is the mean of the network's probabilities over several crops.

Probabilities (softmax) are averaged, not logits. The 10-crop testing of Krizhevsky et al. 2012 works by "averaging the
predictions made by the network's softmax layer". He et al. 2015 (arXiv 1512.03385, Section 3.4) do the same.

    10-crop      mean_probabilities(classify(crop) for crop in ten_crops(images_BHWC, 224))
    multi-scale  mean_probabilities(Dense(model, 224)(images).softmax(1) for images in images_by_scale)
    ensemble     mean_probabilities(model(images_BCHW).softmax(1) for model in models)

Shapes: B images, H and W pixels, S the side of a crop, C channels, P positions, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mirrored(images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images and their mirror images (left to right)."""
    return images_BHWC, images_BHWC.flip(2)


def five_crops(images_BHWC: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return the crops of the four corners and the centre, B x S x S x C each; rounding is torchvision's.

    Raises:
        ValueError: the images are smaller than the crop.
    """
    height, width = images_BHWC.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"size: images of {height}x{width} pixels have no crops of {size}x{size}")
    bottom, right = height - size, width - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    places = [*corners, (round(bottom / 2), round(right / 2))]
    return tuple(images_BHWC[:, top : top + size, left : left + size] for top, left in places)


def ten_crops(images_BHWC: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return the five crops and their mirror images: the paper's "standard 10-crop testing"."""
    return tuple(each for crop in five_crops(images_BHWC, size) for each in mirrored(crop))


def mean_probabilities(parts_BK: Iterable[Tensor]) -> Tensor:
    """Return the mean of the probabilities of several crops, or of several models, B x K."""
    return torch.stack(list(parts_BK)).mean(dim=0)


class Dense(nn.Module):
    """A ResNet in fully convolutional form: it classifies every crop position of an image of any size.

    Global average pooling becomes average pooling of stride 1, with the window that a crop of S x S fills (7x7 at 224).
    The linear layer acts at each position, like a 1x1 convolution. The probabilities of all positions are averaged,
    as if many crops were tested. An image of S x S has one position, and the result is the model's own. If the feature
    map is smaller than the window, the window is the map.

    Nothing is padded. In evaluation mode, images of a batch do not affect each other.
    """

    def __init__(self, model: nn.Module, crop_size: int, *, multi_label: bool = False) -> None:
        """Wrap `model`, which has `avgpool` and `fc` like torchvision's ResNets.

        Args:
            model: a classifier of crops.
            crop_size: S, in pixels.
            multi_label: a sigmoid for each class, instead of one softmax over all classes.
        """
        super().__init__()
        self.model, self.multi_label = model, multi_label
        self.window = self._window(crop_size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits of the mean probability, B x K: a softmax, or a sigmoid if `multi_label`, gives it."""
        maps_BCHW = self._feature_maps(images_BCHW)
        height, width = maps_BCHW.shape[2:]
        pooled_BCHW = F.avg_pool2d(maps_BCHW, (min(self.window[0], height), min(self.window[1], width)), stride=1)
        logits_BPK = self.model.get_submodule("fc")(pooled_BCHW.flatten(2).mT)
        if self.multi_label:
            return F.logsigmoid(logits_BPK).logsumexp(dim=1) - F.logsigmoid(-logits_BPK).logsumexp(dim=1)
        positions = logits_BPK.shape[1]
        log_mean_BK: Tensor = logits_BPK.log_softmax(dim=2).logsumexp(dim=1) - math.log(positions)
        return log_mean_BK

    def _feature_maps(self, images_BCHW: Tensor) -> Tensor:
        """Return the input of the model's global pooling."""
        seen: list[Tensor] = []
        pooling = self.model.get_submodule("avgpool")
        hook = pooling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.model(images_BCHW)
        finally:
            hook.remove()
        return seen[0]

    @torch.no_grad()
    def _window(self, crop_size: int) -> tuple[int, int]:
        """Return the height and width of a crop's feature map."""
        first = next(module for module in self.model.modules() if isinstance(module, nn.Conv2d))
        was_training = self.model.training
        self.model.eval()
        try:
            maps_BCHW = self._feature_maps(first.weight.new_zeros(1, first.in_channels, crop_size, crop_size))
        finally:
            self.model.train(was_training)
        height, width = maps_BCHW.shape[2:]
        return height, width
