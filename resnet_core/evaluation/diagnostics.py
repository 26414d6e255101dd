"""The paper's analysis of what a network's layers do (He et al. 2015, arXiv 1512.03385, Section 4).

A layer's response is the output of a 3x3 convolution after its BatchNorm, before the nonlinearity or the addition
(Figure 7); of a convolution that no BatchNorm follows, such as the last of a pre-activation block, its own output.
Layers come in the order in which they compute. Models are in evaluation mode meanwhile, so that no image knows of the
others in its batch, and the results do not depend on how images are split into batches.

Shapes: B images, C channels, H and W pixels. Images are what the network takes: float32, normalized, on its device.
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
"""(name of the convolution in the model, value), in the order of the layers."""
Look = Callable[[str, Tensor], None]
_KERNEL = (3, 3)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class _Moments:
    """Sums over the elements of tensors: exact, up to float64, under any split."""

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
    """The standard deviation of each layer's response, over all images, channels and pixels: Figure 7.

    batches: B x C x H x W each. ValueError if there are no images, or no 3x3 convolution.
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
    """The norm of the gradient that reaches each layer's response ("backward propagated", Section 4.1).

    Of each image's own cross-entropy, the root mean square over images; no parameter's gradient is touched.

    batches: (images B x C x H x W, labels int64 B) each. ValueError if there are no images, or no 3x3 convolution.
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
    """By the name of each 3x3 convolution, in order: the module whose output is the layer's response.

    Found by following tensors through a forward pass, whatever the blocks call their parts.
    """
    names = {module: name for name, module in model.named_modules()}
    layers: dict[str, nn.Module] = {}
    outputs: list[tuple[str, Tensor, int]] = []  # the version tells an output from a sum that is written over it

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
    """Show `look` every layer's response as it is computed."""

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
