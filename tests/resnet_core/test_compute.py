from __future__ import annotations

import pytest
import torch

from resnet_core import compute
from resnet_core.config import ComputeConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings_restored():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def test_bf16_without_the_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "computes_bf16", lambda device: False)
    with pytest.raises(ValueError, match=r'compute\.precision must be "fp32" on this worker: its cpu has no bf16'):
        compute.configure(ComputeConfig(precision="bf16"), CPU)


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_bf16_where_it_is_computed_and_leaves_a_cpu_uncompiled(
    monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(compute, "computes_bf16", lambda device: able)
    decided = compute.resolve(ComputeConfig(microbatch_size=7), CPU)
    assert decided == ComputeConfig(precision="bf16" if able else "fp32", compile=False, microbatch_size=7)


@pytest.mark.parametrize("missing", ["", "No working C++ compiler found"])
def test_auto_compiles_on_a_gpu_with_the_compilers(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(compute, "computes_bf16", lambda device: True)
    monkeypatch.setattr(compute, "why_not_compiled", lambda device: missing)
    assert compute.resolve(ComputeConfig(), torch.device("cuda", 0)).compile is not bool(missing)


def test_what_is_said_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "computes_bf16", lambda device: True)
    said = ComputeConfig(precision="fp32", compile=True)
    assert compute.resolve(said, CPU) == said


def test_threads_and_determinism_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    compute.configure(ComputeConfig(threads_per_worker=2, deterministic=True), CPU)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    compute.configure(ComputeConfig(threads_per_worker=0), CPU)
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gpu_that_is_not_there_is_named() -> None:
    absent = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"needs GPU number {absent} on this worker, and torch sees {absent}"):
        compute.pick_device(use_gpu=True, local_rank=absent)
    assert compute.pick_device(use_gpu=False) == CPU


def test_autocast_follows_the_precision() -> None:
    a = torch.ones(2, 2)
    with compute.autocast(CPU, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with compute.autocast(CPU, "fp32"):
        assert (a @ a).dtype == torch.float32


def test_compilation_changes_neither_the_type_nor_the_names(make_state) -> None:
    model = make_state().model
    kind, names = type(model), list(model.state_dict())
    compute.compile_forward(model)
    assert (type(model), list(model.state_dict())) == (kind, names)
    assert model._compiled_call_impl is not None


def test_channels_last_lays_out_the_weights(make_state) -> None:
    model = compute.to_memory_format(make_state().model, channels_last=True)
    assert model.get_parameter("conv1.weight").is_contiguous(memory_format=torch.channels_last)
