from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.config import ModelConfig
from resnet_core.evaluation.diagnostics import gradient_norms, response_deviations, response_layers
from resnet_core.models import ResNet, build_model

RESNET = ModelConfig(name="resnet20", num_classes=4)
PLAIN = ModelConfig(name="plain20", num_classes=4)
PRE_ACTIVATION = ModelConfig(name="resnet20", num_classes=4, block_order="pre")
BOTTLENECK = ModelConfig(name="resnet50", num_classes=4)


def settled(config: ModelConfig = RESNET) -> ResNet:
    """A network whose BatchNorms have seen images and differ from one another."""
    torch.manual_seed(3)
    model = build_model(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    for _ in range(3):
        model(torch.randn(8, 3, 16, 16))
    return model


def batches(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(sum(sizes), 3, 16, 16, generator=generator)
    labels = torch.randint(0, 4, (sum(sizes),), generator=generator)
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def images_of(sizes: list[int]) -> list[Tensor]:
    return [images for images, _ in batches(sizes)]


def post_activation_norms(model: ResNet) -> dict[str, str]:
    """By the names of torchvision: the norm behind each 3x3 convolution of a network of basic blocks."""
    inside = {f"{name}.conv{i}": f"{name}.bn{i}" for name, _ in model.blocks() for i in (1, 2)}
    return {"conv1": "bn1", **inside}


@pytest.mark.parametrize("config", [RESNET, PLAIN])
def test_a_response_comes_after_the_norm(config: ModelConfig) -> None:
    model = settled(config)
    layers = response_layers(model.eval(), images_of([1])[0])
    names = {module: found for found, module in model.named_modules()}
    assert {layer: names[module] for layer, module in layers.items()} == post_activation_norms(model)
    assert list(layers)[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert len(layers) == 19


def test_only_3x3_convolutions_are_layers() -> None:
    model = settled(BOTTLENECK).eval()
    layers = list(response_layers(model, images_of([1])[0]))
    assert layers == [f"{name}.conv2" for name, _ in model.blocks()]


def test_a_pre_activation_branch_ends_in_a_convolution() -> None:
    model = settled(PRE_ACTIVATION).eval()
    layers = response_layers(model, images_of([1])[0])
    assert layers["layer2.0.conv1"] is model.get_submodule("layer2.0.bn2")
    assert layers["layer2.0.conv2"] is model.get_submodule("layer2.0.conv2")  # not layer2.1.bn1, which sees the sum


def test_deviations_are_those_of_all_responses_together() -> None:
    model = settled().eval()
    [images] = images_of([10])
    responses: dict[str, Tensor] = {}
    for layer, norm in post_activation_norms(model).items():
        model.get_submodule(norm).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: responses.update({layer: output.clone()})
        )
    with torch.no_grad():
        model(images)
    expected = {layer: float(response.double().std(correction=0)) for layer, response in responses.items()}
    measured = response_deviations(model, images_of([10]))
    assert [layer for layer, _ in measured] == list(expected)
    assert dict(measured) == pytest.approx(expected, rel=1e-6)
    assert len(set(expected.values())) == 19


@pytest.mark.parametrize("sizes", [[10], [3, 3, 3, 1], [1] * 10], ids=str)
def test_how_images_are_split_does_not_matter(sizes: list[int]) -> None:
    model = settled()
    assert dict(response_deviations(model, images_of(sizes))) == pytest.approx(
        dict(response_deviations(model, images_of([10]))), rel=1e-6
    )
    assert dict(gradient_norms(model, batches(sizes))) == pytest.approx(
        dict(gradient_norms(model, batches([10]))), rel=1e-4
    )


@pytest.mark.parametrize("config", [RESNET, PLAIN, PRE_ACTIVATION])
def test_a_gradient_is_that_of_adding_something_to_the_response(config: ModelConfig) -> None:
    model = settled(config).eval()
    data = batches([4])
    [(images, labels)] = data
    layers = response_layers(model, images[:1])
    added: dict[str, Tensor] = {}

    def add(layer: str, output: Tensor) -> Tensor:
        added[layer] = torch.zeros_like(output, requires_grad=True)
        return output + added[layer]

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, layer=layer: add(layer, output))
        for layer, module in layers.items()
    ]
    squares = dict.fromkeys(layers, 0.0)
    for image, label in zip(images, labels, strict=True):
        F.cross_entropy(model(image[None]), label[None]).backward()
        for layer, nothing in added.items():
            assert nothing.grad is not None
            squares[layer] += float(nothing.grad.double().square().sum())
    for hook in hooks:
        hook.remove()
    expected = {layer: (total / 4) ** 0.5 for layer, total in squares.items()}
    assert dict(gradient_norms(model, data)) == pytest.approx(expected, rel=1e-4)


def test_nothing_is_left_behind() -> None:
    model = settled().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    response_deviations(model, images_of([4, 4]))
    gradient_norms(model, batches([4, 4]))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_images_there_is_nothing_to_tell() -> None:
    with pytest.raises(ValueError, match="batches: there are no images"):
        response_deviations(settled(), [])
    with pytest.raises(ValueError, match="batches: there are no images"):
        gradient_norms(settled(), [])
