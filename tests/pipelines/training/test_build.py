"""What "auto" becomes in a run, and in one that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from pipelines.config.recipe import Recipe, build_recipe, load_recipe
from pipelines.training.build import build_state, continued, decided, steps_of_rank
from pipelines.training.stream import Stream
from resnet_core import compute
from tests.pipelines.conftest import Coloured

CPU = torch.device("cpu")


def able(monkeypatch: pytest.MonkeyPatch, yes: bool) -> None:
    monkeypatch.setattr(compute, "computes_bf16", lambda device: yes)


def recipe(**settings: object) -> Recipe:
    return load_recipe(
        "mnist5k", {"model.num_classes": 10} | {f"compute.{key}": value for key, value in settings.items()}
    )


@pytest.mark.parametrize("others", [0.0, 1.0])
def test_one_worker_that_lacks_bf16_decides_for_all(monkeypatch: pytest.MonkeyPatch, others: float) -> None:
    able(monkeypatch, True)
    monkeypatch.setattr(compute, "max_over_ranks_", lambda lacking: lacking.clamp(min=others))
    assert decided(recipe(), CPU).compute.precision == ("fp32" if others else "bf16")
    assert decided(recipe(precision="bf16"), CPU).compute.precision == "bf16"


def test_a_checkpoint_decides_for_the_run_that_continues_it(monkeypatch: pytest.MonkeyPatch) -> None:
    able(monkeypatch, True)
    began = recipe(precision="fp32").flat()
    assert continued(decided(recipe(), CPU), began, CPU).compute.precision == "fp32"
    able(monkeypatch, False)
    with pytest.raises(UserError, match=r"this run began in bf16, and this worker's cpu has no bf16 instructions"):
        continued(decided(recipe(), CPU), recipe(precision="bf16").flat(), CPU)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_a_worker_lacks_is_a_user_s_error_with_the_key_to_change(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    able(monkeypatch, False)
    with pytest.raises(UserError, match=rf'compute\.precision must be "fp32" or auto .*no {precision} instructions'):
        decided(recipe(precision=precision), CPU)
    monkeypatch.setattr(compute, "why_not_compiled", lambda device: "no C++ compiler")
    with pytest.raises(UserError, match=r"compute\.compile must be false on this worker: no C\+\+ compiler"):
        decided(recipe(compile=True), CPU)


def test_a_run_in_fp16_has_a_scaler_and_no_other_has() -> None:
    for precision in ("fp32", "bf16", "fp16"):
        state = build_state(recipe(precision=precision, compile=False), CPU, 1, samples=100)
        assert (state.scaler is not None) == (precision == "fp16")
        assert ("scaler" in state.tensors()) == (precision == "fp16")


def test_ranks_do_not_send_each_other_buffers_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's are taken where they are read: at an evaluation."""
    asked: dict[str, object] = {}

    class Wrapper(torch.nn.Identity):
        def __init__(self, module: torch.nn.Module, **settings: object) -> None:
            super().__init__()
            asked.update(settings)

    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Wrapper)
    build_state(recipe(precision="fp32", compile=False), CPU, 2, samples=100)
    assert asked == {"device_ids": None, "broadcast_buffers": False}


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_exchanged_in_the_precision_of_the_recipe(precision: str) -> None:
    state = build_state(recipe(precision="fp32", compile=False, all_reduce=precision), CPU, 2, samples=100)
    images = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    parameters = list(state.model.parameters())
    alone = torch.autograd.grad(state.model(images).square().sum(), parameters)
    state.forward(images).square().sum().backward()
    for parameter, gradient in zip(parameters, alone, strict=True):
        assert parameter.grad is not None
        rounded = gradient.bfloat16().float()
        assert not rounded.equal(gradient) or gradient.numel() < 100  # it can be told apart
        assert parameter.grad.equal(rounded if precision == "bf16" else gradient)


@pytest.mark.parametrize(
    ("settings", "workers", "limit"),
    [
        ({"run.num_workers": [1, 3]}, 3, 0),
        ({"run.num_workers": [1, 3]}, 2, 22),  # of 64
        ({"run.num_workers": [1, 3]}, 1, 22),
        ({"run.num_workers": [1, 4], "data.ordered": True}, 1, 16),
        ({"run.num_workers": [1, 3], "compute.microbatch_size": 5}, 1, 5),
        ({"run.num_workers": [1, 3], "optim.sync_batch_norm": True}, 2, 0),
        ({"run.num_workers": 2}, 2, 0),
        ({"run.num_workers": 0}, 1, 0),
    ],
)
def test_the_batch_norms_of_an_elastic_run_see_as_many_images_on_fewer_workers(
    colours: Coloured, settings: dict[str, object], workers: int, limit: int
) -> None:
    wanted = build_recipe({}, {**colours.recipe, "optim.global_batch_size": 64, **settings})
    stream = Stream(
        manifest=colours.manifest,
        data_uri=colours.store.uri,
        run_uri="",
        crop=wanted.data.at(wanted.data.image_size),
        sizes=((0, wanted.data.image_size),),
        split="train",
        seed=0,
        total_samples=640,
        step_rows=64,
        task_mb=1,
        ordered=wanted.data.ordered,
    )
    assert steps_of_rank(wanted, stream, workers).microbatch_size == limit
