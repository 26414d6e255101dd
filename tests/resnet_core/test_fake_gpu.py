"""Whole steps on a GPU that is none: a tensor on another device, or a wait of the host for the GPU, fails them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy as copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from resnet_core import distributed as collective
from resnet_core import loop
from resnet_core.augment import step_generator
from resnet_core.compute import autocast
from resnet_core.config import AugmentConfig, ModelConfig, OptimConfig, Precision
from resnet_core.distributed import Vote
from resnet_core.evaluation import EvalBatch, EvalSums, Mistakes
from resnet_core.loop import NullRecorder, fit
from resnet_core.losses import LossConfig
from resnet_core.models import ResNet, build_model, set_drop_path, set_generator
from resnet_core.optim import averaging, build_optimizer
from resnet_core.optim.averaging import WeightAverage, equal, exponential
from resnet_core.optim.scaling import LossScaler
from resnet_core.state import TrainState
from resnet_core.step import Microbatch, RankBatch, StepConfig, eval_step, train_step
from tests.resnet_core.fake_gpu import CUDA, WaitsForTheGpu, Watch, fake_gpu
from tests.resnet_core.test_loop import make_run

META = torch.device("meta")
ROWS, SIDE, CLASSES = 6, 32, 10
EVERYTHING = AugmentConfig(
    flip=True,
    color_jitter=0.4,
    lighting=0.1,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
    erase_prob=0.25,
)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr("resnet_core.step.autocast", lambda device, precision: _autocast(device, precision))
    monkeypatch.setattr(averaging.copy, "deepcopy", lambda network: _twin(network))
    with fake_gpu():
        yield


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    return nullcontext() if device == META else autocast(device, precision)  # there is none for meta tensors


def _twin(network: nn.Module) -> nn.Module:
    """Another network: a copy of fake parameters would be of another mode."""
    if not isinstance(network, ResNet):
        return copy(network)
    with network.fc.weight.device:
        return build_model(ModelConfig(name="resnet20", depths=(1, 1, 1), num_classes=network.fc.out_features))


def images(rows: int = ROWS, device: torch.device = CUDA) -> Tensor:
    return torch.zeros(rows, SIDE, SIDE, 3, dtype=torch.uint8, device=device)


def labels(rows: int = ROWS, device: torch.device = CUDA) -> Tensor:
    return torch.zeros(rows, dtype=torch.int64, device=device)


def share(device: torch.device = CUDA) -> RankBatch:
    whole = Microbatch(images_BHWC=images(device=device), labels_B=labels(device=device))
    return RankBatch(microbatches=whole.split(4), count=2 * ROWS, world_size=2)


def state_on(
    device: torch.device, optim: OptimConfig | None = None, model: ModelConfig | None = None, *, scaled: bool = False
) -> TrainState:
    optim = optim or OptimConfig()
    with device:  # fake parameters cannot be moved
        network = build_model(model or ModelConfig(name="resnet20", depths=(1, 1, 1), num_classes=CLASSES))
    kept = equal(0) if optim.average_from else exponential(optim.ema_decay or 0.9, warmup=True)
    average = WeightAverage(network, kept) if optim.ema_decay or optim.average_from else None
    return TrainState(
        model=network,
        forward=network,
        optimizer=build_optimizer(network, optim),
        average=average,
        scaler=LossScaler(device) if scaled else None,
    )


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """steps(state, config, masked=False): two steps, of which the second is watched.

    The first makes what is kept, as constants and momenta are. Torch's engine has no backward pass of fake `cuda`
    tensors where there is no GPU: here a loss gives gradients of zero; the engine itself runs on `meta` below.
    """

    def run(state: TrainState, config: StepConfig, *, masked: bool = False) -> None:
        def backward(loss: Tensor) -> None:
            assert loss.device == CUDA and loss.shape == () and loss.requires_grad
            for parameter in state.model.parameters():
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        _two_steps(state, config, masked=masked)

    return run


def _two_steps(state: TrainState, config: StepConfig, *, masked: bool) -> None:
    generator = torch.Generator()
    for watched in (False, True):
        if masked:
            set_generator(state.model, generator)
            set_drop_path(state.model, 0.5)
        batch = share()
        if watched:
            with Watch():
                sums = train_step(state, batch, lr=0.1, config=config, generator=generator)
        else:
            sums = train_step(state, batch, lr=0.1, config=config, generator=generator)
        state.step += 1
    assert {sums.loss.device, sums.correct.device, sums.count.device} == {CUDA}
    assert all(parameter.device == CUDA for parameter in state.model.parameters())


STEPS = {
    "plain": (OptimConfig(), StepConfig()),
    "bf16 and every augmentation": (OptimConfig(), StepConfig(augment=EVERYTHING, precision="bf16")),
    "a mean image": (OptimConfig(), StepConfig(augment=AugmentConfig(pixel_mean=True))),
    "clipped": (OptimConfig(clip_norm=1.0), StepConfig(clip_norm=1.0)),
    "averaged": (OptimConfig(ema_decay=0.99), StepConfig()),
    "averaged equally": (OptimConfig(average_from=1), StepConfig()),
    "sharpness-aware": (OptimConfig(sam_rho=0.05), StepConfig(sam_rho=0.05)),
    "smooth binary cross-entropy": (OptimConfig(), StepConfig(loss=LossConfig(loss="bce", label_smoothing=0.1))),
    "lars": (OptimConfig(optimizer="lars"), StepConfig()),
    "lamb": (OptimConfig(optimizer="lamb"), StepConfig()),
    "adamw": (OptimConfig(optimizer="adamw"), StepConfig()),
    "caffe's momentum": (OptimConfig(momentum_form="caffe"), StepConfig()),
    "scaled": (OptimConfig(), StepConfig(precision="fp16")),
    "scaled, clipped and sharpness-aware": (
        OptimConfig(ema_decay=0.99),
        StepConfig(precision="fp16", clip_norm=1.0, sam_rho=0.05),
    ),
}


# LAMB counts its steps on the CPU, whose tensors are fake here too. On meta they are not; but there torch's AdamW
# counts on the host, since it is not fused, and there is no scaler.
ON_CUDA = {name: each for name, each in STEPS.items() if each[0].optimizer != "lamb"}
ON_META = {name: each for name, each in STEPS.items() if each[0].optimizer != "adamw" and each[1].precision != "fp16"}


@pytest.mark.parametrize(("optim", "config"), ON_CUDA.values(), ids=ON_CUDA)
def test_a_step_stays_on_the_gpu_and_nobody_waits(steps, optim: OptimConfig, config: StepConfig) -> None:
    if config.augment.pixel_mean:
        mean = torch.zeros(SIDE, SIDE, 3, device=CUDA)
        config = StepConfig(augment=config.augment, mean_image_HWC=mean)
    steps(state_on(CUDA, optim, scaled=config.precision == "fp16"), config)


def test_random_masks_stay_on_the_gpu(steps) -> None:
    model = ModelConfig(name="resnet20", depths=(1, 1, 1), num_classes=CLASSES, drop_path=0.2, dropout=0.1)
    steps(state_on(CUDA, model=model), StepConfig(), masked=True)


@pytest.mark.parametrize(("optim", "config"), ON_META.values(), ids=ON_META)
def test_a_whole_step_needs_no_value(monkeypatch: pytest.MonkeyPatch, optim: OptimConfig, config: StepConfig) -> None:
    """The backward pass too, on tensors that have none; the optimizers' own fused kernels are left out."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        state = state_on(META, optim)
        if config.augment.pixel_mean:
            mean = torch.zeros(SIDE, SIDE, 3, device=META)
            config = StepConfig(augment=config.augment, mean_image_HWC=mean)
        for _ in range(2):
            sums = train_step(state, share(META), lr=0.1, config=config, generator=torch.Generator())
            state.step += 1
    assert {sums.loss.device, sums.correct.device, sums.count.device} == {META}


@pytest.mark.parametrize("classes", [CLASSES, 2000])
def test_an_evaluation_waits_only_at_its_end(classes: int) -> None:
    state = state_on(CUDA, model=ModelConfig(name="resnet20", depths=(1, 1, 1), num_classes=classes))
    state.model.eval()
    sums = EvalSums(classes, CUDA)
    mistakes = Mistakes.empty(5, SIDE, SIDE, CUDA)
    for watched in (False, True):
        batch = EvalBatch(images_BHWC=images(), labels_B=labels(), ids_B=labels())
        if not watched:  # makes the constants
            eval_step(state.model, batch.images_BHWC, StepConfig(precision="bf16"))
            continue
        with Watch():
            logits = eval_step(state.model, batch.images_BHWC, StepConfig(precision="bf16"))
            sums.update(logits, batch.labels_B)
            mistakes = mistakes.with_batch(batch, logits)
    assert mistakes.images_NHWC.device == sums.loss.device == CUDA


WRONG = {
    "item": lambda loss: loss.item(),
    "int": lambda loss: int(loss),
    "bool": lambda loss: bool(loss > 0),
    "cpu": lambda loss: loss.cpu(),
    "nonzero": lambda loss: loss[None].nonzero(),
    "mask": lambda loss: loss[None][loss[None] > 0],
    "from the host": lambda loss: torch.tensor(1.0, device=CUDA),
    "another device": lambda loss: loss + torch.ones(1),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_watch_sees_a_wait_and_another_device(wrong) -> None:
    loss = torch.zeros((), device=CUDA)
    with pytest.raises((WaitsForTheGpu, RuntimeError)), Watch():
        wrong(loss[None].expand(2) if wrong is WRONG["another device"] else loss)


class MeetingPlace(nn.SyncBatchNorm):
    """Stands for torch's own, whose forward pass waits for the GPU in torch's code."""

    def forward(self, input: Tensor) -> Tensor:
        return input


def test_votes_and_rounds_of_ranks_never_ask_the_gpu(make_state, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop with all that a step's host must know of other ranks, on tensors whose values nobody can read."""
    exchanged: list[torch.device] = []

    def all_reduce(values: Tensor, op: object = None, async_op: bool = False) -> object:
        exchanged.append(values.device)
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(collective, "is_distributed", lambda: True)
    monkeypatch.setattr(collective.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(loop, "step_generator", lambda seed, step, rank, device: torch.Generator())
    with torch._subclasses.fake_tensor.unset_fake_temporarily():  # CPU tensors are real here
        state = make_state(OptimConfig(ema_decay=0.9))
        state.model = state.forward = nn.Sequential(state.model, MeetingPlace(3, affine=False)).to(META)
        state.average = WeightAverage(state.model, exponential(0.9))
        state.optimizer = build_optimizer(state.model, OptimConfig())
        vote = Vote()
        seen: list[int] = []

        def leave(step: int) -> bool:
            seen.append(vote(0))
            return False

        run = make_run(
            NullRecorder(), None, intervals=loop.Intervals(total_steps=9, log_every_steps=0), should_stop=leave
        )
        with pytest.raises(RuntimeError, match="ended at step 4 of 9"):
            fit(state, [share(META)] * 4, run)
    assert seen == [0, 0, 0, 0]
    assert len(exchanged) == 8
    assert set(exchanged) == {torch.device("cpu")}


def test_the_generator_of_a_step_is_on_its_device() -> None:
    assert step_generator(0, 1, 2, torch.device("cpu")).device.type == "cpu"
