"""The paper's analysis of what a network's layers do (He et al. 2015, arXiv 1512.03385, Section 4).

A layer's response is the output of a 3x3 convolution after its BatchNorm, before the nonlinearity or the addition
(Figure 7). If no BatchNorm follows, as after the last convolution of a pre-activation block, it is the convolution's
output. Layers are in the order in which they compute. Models run in evaluation mode, so images do not affect each
other and the results do not depend on the split into batches.

Shapes: B images, C channels, H and W pixels. Images are the network's input: float32, normalized, on its device.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LayerValues = list[tuple[str, float]]
"""List of (name of the convolution in the model, value), in the order of the layers."""
Look = Callable[[str, Tensor], None]
_KERNEL = (3, 3)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class _Moments:
    """Sums over the elements of tensors, in float64: the split into batches does not matter."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = 0.0

    def add(self, values: Tensor) -> None:
        self.count += values.numel()
        self.total += float(values.sum(dtype=torch.float64))
        self.squares += _sum_of_squares(values)

    @property
    def deviation(self) -> float:
        mean = self.total / self.count
        return math.sqrt(max(0.0, self.squares / self.count - mean**2))


def response_deviations(model: nn.Module, batches: Iterable[Tensor]) -> LayerValues:
    """Return the standard deviation of each layer's response over all images, channels and pixels (Figure 7).

    Args:
        batches: images, B x C x H x W each.

    Raises:
        ValueError: there are no images, or the model has no 3x3 convolution.
    """
    layers: dict[str, nn.Module] = {}
    moments: defaultdict[str, _Moments] = defaultdict(_Moments)

    def look(layer: str, response: Tensor) -> None:
        moments[layer].add(response)

    with _evaluating(model), torch.no_grad():
        for images_BCHW in batches:
            layers = layers or response_layers(model, images_BCHW[:1])
            with _watching(layers, look):
                model(images_BCHW)
    _require(moments)
    return [(layer, moments[layer].deviation) for layer in layers]


def gradient_norms(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> LayerValues:
    """Return the norm of the gradient that reaches each layer's response ("backward propagated", Section 4.1).

    The gradient is that of each image's cross-entropy; the result is the root mean square over images. Gradients of
    parameters do not change.

    Args:
        batches: (images B x C x H x W, labels int64 B) each.

    Raises:
        ValueError: there are no images, or the model has no 3x3 convolution.
    """
    layers: dict[str, nn.Module] = {}
    squares: defaultdict[str, float] = defaultdict(float)
    count = 0

    def look(layer: str, response: Tensor) -> None:
        response.register_hook(lambda gradient: add(layer, gradient))

    def add(layer: str, gradient: Tensor) -> None:
        squares[layer] += _sum_of_squares(gradient)

    with _evaluating(model), torch.enable_grad():
        for images_BCHW, labels_B in batches:
            layers = layers or response_layers(model, images_BCHW[:1])
            images = images_BCHW.detach().requires_grad_()
            with _watching(layers, look):
                loss = F.cross_entropy(model(images), labels_B, reduction="sum")
            torch.autograd.grad(loss, images)
            count += len(labels_B)
    _require(squares)
    return [(layer, math.sqrt(squares[layer] / count)) for layer in layers]


@torch.no_grad()
def response_layers(model: nn.Module, images_BCHW: Tensor) -> dict[str, nn.Module]:
    """Return the module whose output is each layer's response, by the name of the 3x3 convolution, in order.

    A forward pass follows the tensors, so the names of a block's modules do not matter.
    """
    names = {module: name for name, module in model.named_modules()}
    layers: dict[str, nn.Module] = {}
    outputs: list[tuple[str, Tensor, int]] = []  # the version changes when a sum is written into an output

    def see_convolution(module: nn.Module, _: object, output: Tensor) -> None:
        layers[names[module]] = module
        outputs.append((names[module], output, output._version))

    def see_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for layer, output, version in outputs:
            if output is inputs[0] and version == output._version:
                layers[layer] = module

    hooks = [
        *(conv.register_forward_hook(see_convolution) for conv in names if _is_3x3(conv)),
        *(norm.register_forward_pre_hook(see_norm) for norm in names if isinstance(norm, _NORMS)),
    ]
    try:
        model(images_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def _is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == _KERNEL


@contextmanager
def _watching(layers: Mapping[str, nn.Module], look: Look) -> Iterator[None]:
    """Call `look` with every layer's name and response when the response is computed."""

    def shown(layer: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, response: look(layer, response)

    hooks = [module.register_forward_hook(shown(layer)) for layer, module in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _sum_of_squares(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _require(found: Mapping[str, object]) -> None:
    if not found:
        raise ValueError("batches: there are no images, or the model has no 3x3 convolution")
