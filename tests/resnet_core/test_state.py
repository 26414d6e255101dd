from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_core.config import OptimConfig
from resnet_core.optim.averaging import WeightAverage, exponential
from resnet_core.state import TrainState
from resnet_core.step import RankBatch, StepConfig, train_step

WITH_EMA = OptimConfig(ema_decay=0.9, nesterov=True)


def train(state: TrainState, make_batch, steps: range, *, channels_last: bool = False) -> None:
    for step in steps:
        share = RankBatch(microbatches=[make_batch(6, seed=step)], count=6)
        config = StepConfig(channels_last=channels_last)
        train_step(state, share, lr=0.05, config=config, generator=torch.Generator())
        state.step += 1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(),
        WITH_EMA,
        OptimConfig(momentum=0.0),
        OptimConfig(momentum_form="caffe"),
        OptimConfig(optimizer="lars", ema_decay=0.9, ema_every=2),
        OptimConfig(optimizer="lamb", ema_decay=0.9, ema_warmup=True),
        OptimConfig(optimizer="adamw"),
    ],
)
def test_a_restored_state_goes_on_bit_for_bit(make_state, make_batch, same_state, config, channels_last) -> None:
    def build(seed: int) -> TrainState:
        state = make_state(config, seed=seed)
        if channels_last:
            state.model.to(memory_format=torch.channels_last)
        return state

    unbroken, resumed = build(0), build(99)
    train(unbroken, make_batch, range(3), channels_last=channels_last)
    resumed.load_tensors(unbroken.snapshot())
    resumed.step = unbroken.step
    same_state(resumed, unbroken)
    train(unbroken, make_batch, range(3, 6), channels_last=channels_last)
    train(resumed, make_batch, range(3, 6), channels_last=channels_last)
    same_state(resumed, unbroken)


def test_a_state_saved_before_its_first_step_trains_as_if_never_saved(make_state, make_batch, same_state) -> None:
    untouched, saved = make_state(), make_state()
    saved.snapshot()
    train(untouched, make_batch, range(3))
    train(saved, make_batch, range(3))
    same_state(saved, untouched)


def test_snapshot_is_contiguous_named_after_parameters_and_outlives_further_steps(make_state, make_batch) -> None:
    state = make_state(WITH_EMA)
    state.model.to(memory_format=torch.channels_last)
    train(state, make_batch, range(1), channels_last=True)
    snapshot = state.snapshot()
    kept = {group: {name: tensor.clone() for name, tensor in t.items()} for group, t in snapshot.items()}
    train(state, make_batch, range(1, 3), channels_last=True)
    assert set(snapshot) == {"model", "ema", "optimizer"}
    assert set(snapshot["model"]) == set(snapshot["ema"]) == set(state.model.state_dict())
    assert set(snapshot["optimizer"]) == {f"momentum_buffer.{name}" for name, _ in state.model.named_parameters()}
    for group, tensors in snapshot.items():
        for name, tensor in tensors.items():
            assert tensor.is_contiguous()
            assert torch.equal(tensor, kept[group][name])


def test_snapshot_fits_safetensors(make_state, make_batch, same_state, tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state, restored = make_state(WITH_EMA), make_state(WITH_EMA, seed=5)
    train(state, make_batch, range(2))
    for group, tensors in state.snapshot().items():
        safetensors.save_file(tensors, tmp_path / f"{group}.safetensors")
    restored.load_tensors({path.stem: safetensors.load_file(path) for path in tmp_path.iterdir()})
    restored.step = state.step
    same_state(restored, state)


def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(make_state, same_state) -> None:
    state, untouched = make_state(), make_state()
    saved = make_state(seed=1).snapshot()
    saved["model"]["fc.weight"] = torch.zeros(10, 8)
    saved["model"]["fc2.weight"] = torch.zeros(1)
    saved["model"]["bn1.bias"] = saved["model"]["bn1.bias"].double()
    del saved["optimizer"]["momentum_buffer.conv1.weight"]
    with pytest.raises(ValueError) as caught:
        state.load_tensors(saved)
    assert str(caught.value) == (
        "1 missing tensor: optimizer.momentum_buffer.conv1.weight; 1 unexpected tensor: model.fc2.weight; "
        "2 mismatched tensors: model.bn1.bias (float64 [4], not float32 [4]), "
        "model.fc.weight (float32 [10, 8], not float32 [3, 8])"
    )
    same_state(state, untouched)


def test_a_missing_average_is_named_in_one_short_line(make_state) -> None:
    with pytest.raises(ValueError, match=r"^32 missing tensors: ema\.bn1\.bias, .* and 29 more$"):
        make_state(WITH_EMA).load_tensors(make_state().snapshot())


def test_average_follows_the_weights_and_copies_the_buffers() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, exponential(0.75))
    for step, weight in enumerate((2.0, 4.0)):
        nn.init.constant_(model.weight, weight)
        model(torch.tensor([[1.0], [3.0]]))
        average.update(model, step)
    # 1 -> 0.75 + 0.25 * 2 = 1.25 -> 0.75 * 1.25 + 0.25 * 4
    assert float(average.model.get_parameter("weight")) == pytest.approx(1.9375)
    assert torch.equal(average.model.get_buffer("running_mean"), model.get_buffer("running_mean"))
    assert int(average.model.get_buffer("num_batches_tracked")) == 2
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_an_average_takes_one_kernel_for_each_dtype_and_not_one_for_each_tensor(make_state) -> None:
    model = make_state().model
    average = WeightAverage(model, exponential(0.75))
    with Called() as called:
        average.update(model, 0)
    assert called.names == ["_foreach_lerp_", "_foreach_copy_", "_foreach_copy_"]  # weights, statistics, counts


class Called(TorchDispatchMode):
    """Records the operations that write."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.endswith("_"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_averaged_weights_are_the_ones_scored(make_state) -> None:
    averaged, plain = make_state(WITH_EMA), make_state()
    assert averaged.scored_model is averaged.average.model
    assert plain.scored_model is plain.model
