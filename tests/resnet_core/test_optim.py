from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_core.config import ModelConfig, OptimConfig
from resnet_core.models import build_model
from resnet_core.optim import build_optimizer, param_groups


def model() -> nn.Module:
    with torch.device("meta"):
        return build_model(ModelConfig(name="resnet50", num_classes=10))


@pytest.mark.parametrize("everything", [False, True])
def test_groups_partition_the_parameters(everything: bool) -> None:
    network = model()
    grouped = [id(p) for group in param_groups(network, 1e-4, everything) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


def test_norms_and_biases_are_undecayed_the_downsample_norms_included() -> None:
    network = model()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, undecayed = param_groups(network, 1e-4, decay_norm_and_bias=False)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (1e-4, 0.0)
    assert len(decayed["params"]) == 53 + 1  # convolutions, linear weight
    assert len(undecayed["params"]) == 2 * 53 + 1  # norms' scales and shifts, linear bias
    exempt = {names[id(parameter)] for parameter in undecayed["params"]}
    assert {"bn1.weight", "layer1.0.downsample.1.weight", "layer4.2.bn3.bias", "fc.bias"} <= exempt


def test_the_paper_decays_everything() -> None:
    (group,) = param_groups(model(), 1e-4, decay_norm_and_bias=True)
    assert (len(group["params"]), group["weight_decay"]) == (161, 1e-4)


def test_optimizer_takes_its_settings_from_the_recipe() -> None:
    optimizer = build_optimizer(model(), OptimConfig(global_batch_size=512, momentum=0.8, nesterov=True))
    assert {(group["lr"], group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {
        (0.2, 0.8, True)
    }
