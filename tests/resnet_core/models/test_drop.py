"""Stochastic depth and dropout: rates over depth and time, masks from the generator that is handed in."""

from __future__ import annotations

import copy

import pytest
import torch

from resnet_core.config import ModelConfig
from resnet_core.models import build_model, set_drop_path, set_generator
from resnet_core.models.blocks import draw_dropout, draw_survival, drop_rates
from resnet_core.models.resnet import _draw_masks
from tests.resnet_core.models.conftest import small


def test_rates_over_depth() -> None:
    assert drop_rates(0.5, "linear", 4) == [0.125, 0.25, 0.375, 0.5]
    assert drop_rates(0.5, "uniform", 3) == [0.5, 0.5, 0.5]


def test_survival_is_per_image_and_one_on_average() -> None:
    rates = torch.tensor([0.0, 0.2, 0.5])
    survivals = draw_survival(rates, 20_000, torch.Generator().manual_seed(0))
    assert [tuple(survival.shape) for survival in survivals] == [(20_000, 1, 1, 1)] * 3
    assert [sorted(set(survival.flatten().tolist())) for survival in survivals] == [[1.0], [0.0, 1.25], [0.0, 2.0]]
    assert [float(survival.mean()) for survival in survivals] == pytest.approx([1, 1, 1], abs=0.02)


def test_dropout_is_one_on_average() -> None:
    mask = draw_dropout(0.2, (1000, 20), torch.device("cpu"), torch.Generator().manual_seed(0))
    assert set(mask.flatten().tolist()) == {0.0, 1.25}
    assert float(mask.mean()) == pytest.approx(1, abs=0.02)


def test_a_left_out_branch_leaves_the_shortcut() -> None:
    block = small().get_submodule("layer1.1")
    x = torch.rand(3, 16, 4, 4)
    survival = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)
    out = block(x, survival)
    assert torch.equal(out[[0, 2]], x[[0, 2]])  # not negative, so the activation is the identity
    assert not torch.equal(out[1], x[1])


def test_masks_depend_on_the_generator_alone() -> None:
    model = small(regularization={"drop_path": 0.5, "dropout": 0.5}).train()
    images = torch.randn(8, 3, 8, 8)

    def logits(seed: int, global_seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        set_generator(model, torch.Generator().manual_seed(seed))
        return model(images).detach()

    assert torch.equal(logits(1, global_seed=0), logits(1, global_seed=5))
    assert not torch.equal(logits(1, global_seed=0), logits(2, global_seed=0))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    logits_again = model(images)
    assert torch.equal(before, torch.get_rng_state())
    assert logits_again.shape == (8, 3)


def test_evaluation_draws_nothing() -> None:
    model = small(regularization={"drop_path": 0.5, "dropout": 0.5}).eval()
    generator = torch.Generator().manual_seed(0)
    set_generator(model, generator)
    before = generator.get_state()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(images), small().eval()(images))
    assert torch.equal(before, generator.get_state())


def test_the_factor_scales_the_rates() -> None:
    model = small(regularization={"drop_path": 0.5}).train()
    reference = small().train()
    images = torch.randn(16, 3, 8, 8)
    set_drop_path(model, 0.0)
    assert torch.equal(model(images), reference(images))
    set_drop_path(model, 1.0)
    assert not torch.equal(model(images), reference(images))
    survivals, kept = _draw_masks(model, 4000)
    assert kept is None
    dropped = [float(torch.eq(survival, 0).float().mean()) for survival in survivals if survival is not None]
    assert dropped == pytest.approx([0.125, 0.25, 0.375, 0.5], abs=0.03)
    set_drop_path(model, 0.5)
    survivals, _ = _draw_masks(model, 4000)
    assert survivals[-1] is not None
    assert float((survivals[-1] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    with pytest.raises(ValueError, match=r"model\.drop_path times its factor must be in \[0, 1\): got 0\.5 x 2"):
        set_drop_path(model, 2.0)


def test_a_copy_of_the_model_keeps_its_rates_and_they_are_not_saved() -> None:
    model = build_model(ModelConfig(name="resnet20", num_classes=2, drop_path=0.3, drop_path_shape="uniform"))
    set_generator(model, torch.Generator().manual_seed(0))
    assert copy.deepcopy(model).drop_rates_L.tolist() == pytest.approx([0.3] * 9)
    assert not any("drop" in name for name in model.state_dict())


def test_new_generators_and_factors_compile_once() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    model = small(regularization={"drop_path": 0.5, "dropout": 0.1}).train()
    compiled = torch.compile(model, backend=backend)
    images = torch.randn(4, 3, 8, 8)
    for step in range(4):
        set_generator(model, torch.Generator().manual_seed(step))
        set_drop_path(model, 0.5 + step / 8)
        compiled(images)
        if step == 0:
            first = len(graphs)
    assert len(graphs) == first
