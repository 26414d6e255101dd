from __future__ import annotations

import pytest
import torch

from resnet_core import compute
from resnet_core.config import ComputeConfig
from resnet_core.config.compute import PrecisionChoice

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings_restored():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = True


GPU = torch.device("cuda", 0)


def devices(monkeypatch: pytest.MonkeyPatch, *, bf16: bool, fp16: bool = False, compilers: str = "") -> None:
    monkeypatch.setattr(compute, "computes_bf16", lambda device: bf16)
    monkeypatch.setattr(compute, "computes_fp16", lambda device: fp16)
    monkeypatch.setattr(compute, "why_not_compiled", lambda device: compilers)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


def others(monkeypatch: pytest.MonkeyPatch, *, lacking: tuple[float, float] = (0, 0), hosts: int = -(2**31)) -> None:
    """Another rank: which of bf16 and fp16 it lacks, and what it answers to `max_of_hosts`."""
    monkeypatch.setattr(compute, "max_over_ranks_", lambda mine: torch.maximum(mine, torch.tensor(lacking)))
    monkeypatch.setattr(compute, "max_of_hosts", lambda mine: max(mine, hosts))


@pytest.mark.parametrize(
    ("precision", "device", "told"),
    [
        ("bf16", CPU, r'compute\.precision must be "fp32" or auto on this worker: its cpu has no bf16 instructions'),
        ("fp16", CPU, r'compute\.precision must be "fp32" or auto on this worker: its cpu has no fp16 instructions'),
        ("bf16", GPU, r'must be "fp16", "fp32" or auto on this worker: its Tesla T4 has no bf16 instructions'),
    ],
)
def test_a_precision_without_the_instructions_is_refused(
    monkeypatch: pytest.MonkeyPatch, precision: PrecisionChoice, device: torch.device, told: str
) -> None:
    devices(monkeypatch, bf16=False, fp16=device == GPU)
    with pytest.raises(ValueError, match=told):
        compute.resolve(ComputeConfig(precision=precision), device)


@pytest.mark.parametrize(
    ("able", "lacking", "expected"),
    [
        ((True, True), (0, 0), "bf16"),
        ((False, True), (0, 0), "fp16"),  # V100, T4
        ((False, False), (0, 0), "fp32"),
        ((True, True), (1, 0), "fp16"),  # an A100 beside a T4
        ((True, False), (1, 1), "fp32"),  # CPUs, of which one has no bf16
    ],
)
def test_auto_is_the_fastest_that_all_ranks_compute(
    monkeypatch: pytest.MonkeyPatch, able: tuple[bool, bool], lacking: tuple[float, float], expected: PrecisionChoice
) -> None:
    devices(monkeypatch, bf16=able[0], fp16=able[1])
    others(monkeypatch, lacking=lacking)
    decided = compute.resolve(ComputeConfig(microbatch_size=7, compile=False), GPU)
    assert decided == ComputeConfig(precision=expected, compile=False, microbatch_size=7)


def test_fp16_is_for_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (((6, 1), False), ((7, 0), True), ((7, 5), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert compute.computes_fp16(GPU) is expected
    assert compute.computes_fp16(CPU) is False


def test_auto_compiles_for_gpus_and_not_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    devices(monkeypatch, bf16=True)
    assert compute.resolve(ComputeConfig(), GPU).compile is True
    assert compute.resolve(ComputeConfig(), CPU).compile is False


@pytest.mark.parametrize(
    ("mine", "hosts", "told"),
    [
        (
            "no C++ compiler",
            -(2**31),
            ["not compiled, which is slower: worker 2 cannot compile for its cuda: no C++ compiler"],
        ),
        ("no C++ compiler", 0, []),  # rank 0 cannot either, and says so
        ("", -5, []),
    ],
)
def test_one_worker_without_compilers_decides_for_all_and_one_tells_why(
    monkeypatch: pytest.MonkeyPatch, mine: str, hosts: int, told: list[str]
) -> None:
    devices(monkeypatch, bf16=True, compilers=mine)
    others(monkeypatch, hosts=hosts)
    monkeypatch.setattr(compute, "rank", lambda: 2)
    lines: list[str] = []
    assert compute.resolve(ComputeConfig(), GPU, lines.append).compile is False
    assert lines == told
    if mine:
        with pytest.raises(ValueError, match=r"compute\.compile must be false on this worker: no C\+\+ compiler"):
            compute.resolve(ComputeConfig(compile=True), GPU)


def test_what_is_said_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    devices(monkeypatch, bf16=True)
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


def test_fp32_is_no_tf32_in_convolutions_either() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    compute.configure(ComputeConfig(precision="fp32", compile=False), CPU)
    for part in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):
        assert part.fp32_precision != "tf32"
    assert not torch.backends.cudnn.allow_tf32  # what Inductor reads: torch refuses to answer where the two disagree
    assert torch.get_float32_matmul_precision() == "highest"


def test_cudnn_measures_only_where_results_may_differ() -> None:
    compute.configure(ComputeConfig(), CPU)
    assert torch.backends.cudnn.benchmark
    compute.tune_convolutions(False)
    assert not torch.backends.cudnn.benchmark
    compute.configure(ComputeConfig(deterministic=True), CPU)
    compute.tune_convolutions(True)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("cores", "ranks", "expected"), [(192, 8, "24"), (192, 1, "32"), (4, 8, "1"), (None, 2, "1")])
def test_ranks_of_a_node_share_its_compilers(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, ranks: int, expected: str
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "")  # so that what is set is undone
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
    monkeypatch.setattr(compute.os, "cpu_count", lambda: cores)
    compute.share_compilers(ranks)
    assert compute.os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == expected
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    compute.share_compilers(ranks)
    assert compute.os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "3"  # as the user says


def test_a_compiler_that_is_there_already_is_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read its variable: a worker is forked after the import."""
    from torch._inductor import config

    monkeypatch.setattr(config, "compile_threads", 32)
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "")
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
    monkeypatch.setattr(compute.os, "cpu_count", lambda: 8)
    compute.share_compilers(4)
    assert config.compile_threads == 2


@pytest.mark.parametrize(
    ("chosen", "named", "expected"), [(2, "3", 2), (0, "3", 3), (0, "4,2", 4), (0, "", 1), (0, "x", 1)]
)
def test_threads_are_the_recipes_or_the_environments(
    monkeypatch: pytest.MonkeyPatch, chosen: int, named: str, expected: int
) -> None:
    """Torch has read OMP_NUM_THREADS where a worker is forked, and Ray sets it afterwards."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    torch.set_num_threads(1)
    try:
        compute.configure(ComputeConfig(threads_per_worker=chosen), CPU)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_network_that_grows_again_and_again_stays_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch by itself compiles eight graphs of one piece of code, and runs those after them as they are."""
    made: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        made.append(len(list(graph.graph.nodes)))
        return graph.forward

    class Growing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    network = Growing()
    monkeypatch.setattr(network, "compile", lambda: torch.nn.Module.compile(network, backend=backend))
    try:
        for depth in range(1, 13):
            network.layers.append(torch.nn.Linear(2, 2))
            compute.compile_forward(network)
            network(torch.ones(1, 2))
            assert len(made) == depth
    finally:
        torch.compiler.reset()


def test_the_gpu_is_the_one_that_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("Ray Train sets the device"))
    assert compute.pick_device(use_gpu=True) == torch.device("cuda", 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU in this process"):
        compute.pick_device(use_gpu=True)
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
