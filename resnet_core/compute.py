"""A worker's device, threads, precision, memory format and compilation; none of them changes a model's code.

"auto" becomes the same value on all ranks: they compute together, so the weakest rank decides.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import nn

from resnet_core.config.compute import ComputeConfig, Precision
from resnet_core.distributed import max_of_hosts, max_over_ranks_, rank

# glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD (the last at its maximum)
_KEEP = {-1: 2**30, -2: 2**26, -3: 2**25}
_TENSOR_CORES = (7, 0)  # compute capability
_HALF: tuple[Precision, ...] = ("bf16", "fp16")  # the preferred one first
_NO_RANK = 2**31
_COMPILERS = 32  # per process, Inductor's own limit
_GRAPHS = 64  # per function: image sizes, batch sizes, training and evaluation


def pick_device(*, use_gpu: bool) -> torch.device:
    """Return the current GPU of this thread, or the CPU.

    This sets no device. In a training worker Ray Train sets it, and
    `pipelines.training.process_group.worker_device` asks for it. Anywhere else the current GPU is the first one
    that CUDA_VISIBLE_DEVICES lists.

    Raises:
        ValueError: `use_gpu` is true and torch sees no GPU.
    """
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("torch sees no GPU in this process")
    return torch.device("cuda", torch.cuda.current_device())


def computes_bf16(device: torch.device) -> bool:
    """Return whether the device computes bf16 in hardware; a CPU that emulates it is about ten times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def computes_fp16(device: torch.device) -> bool:
    """Return whether fp16 is fast on the device: a GPU with tensor cores (V100, T4; compute capability 7.0 or more)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TENSOR_CORES


def lacks(precision: Precision, device: torch.device) -> str:
    """Return what the device lacks for a precision, as words for a message; "" if it lacks nothing."""
    able = {"fp32": True, "bf16": computes_bf16(device), "fp16": computes_fp16(device)}[precision]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and not able else device.type
    return "" if able else f"{name} has no {precision} instructions"


def why_not_compiled(device: torch.device) -> str:
    """Return why torch.compile fails on the device, "" if it works; it needs a C++ compiler, and Triton on a GPU."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # each missing part of the tool chain raises another type
        return " ".join(str(error).split("\n\n")[0].split())
    return ""


def resolve(
    config: ComputeConfig, device: torch.device, warn: Callable[[str], None] = lambda line: None
) -> ComputeConfig:
    """Return the config with every "auto" decided, the same on all ranks; every rank must call this.

    auto is the fastest way that `benchmarks/step.py` measured, except those that take minutes to start. If GPUs run
    without compilation, one rank calls `warn` with the reason.

    Raises:
        ValueError: this worker cannot do what the config asks for.
    """
    return replace(config, precision=_precision(config, device), compile=_compiled(config, device, warn))


def _precision(config: ComputeConfig, device: torch.device) -> Precision:
    if config.precision != "auto":
        if missing := lacks(config.precision, device):
            fit = ", ".join(f'"{each}"' for each in ("fp16", "bf16", "fp32") if not lacks(each, device))
            raise ValueError(f"compute.precision must be {fit} or auto on this worker: its {missing}")
        return config.precision
    lacking = torch.tensor([float(bool(lacks(each, device))) for each in _HALF])
    able = [name for name, lack in zip(_HALF, max_over_ranks_(lacking).tolist(), strict=True) if not lack]
    return able[0] if able else "fp32"


def _compiled(config: ComputeConfig, device: torch.device, warn: Callable[[str], None]) -> bool:
    if config.compile is False or (config.compile == "auto" and device.type != "cuda"):
        return False
    reason = why_not_compiled(device)
    if reason and config.compile is True:
        raise ValueError(f"compute.compile must be false on this worker: {reason}")
    first = -max_of_hosts(-rank() if reason else -_NO_RANK)
    if first == rank():
        warn(f"not compiled, which is slower: worker {first} cannot compile for its {device.type}: {reason}")
    return first == _NO_RANK


def share_compilers(ranks: int) -> None:
    """Divide a node's compiler processes among its ranks; call this before the first compilation.

    Inductor starts up to 32 processes per rank by default: 256 on a node of eight.
    """
    if "TORCHINDUCTOR_COMPILE_THREADS" in os.environ:
        return
    each = max(1, min(_COMPILERS, (os.cpu_count() or 1) // ranks))
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(each)  # read at Inductor's import
    if inductor := sys.modules.get("torch._inductor.config"):
        inductor.compile_threads = each  # type: ignore[attr-defined]


def configure(config: ComputeConfig, device: torch.device) -> None:
    """Set this process's threads, arithmetic and determinism; `config` comes from `resolve`."""
    forbid_tf32()
    if device.type == "cpu":
        _keep_freed_memory()
        torch.set_num_threads(config.threads_per_worker or _threads_of_environment())
    if config.deterministic:
        # cuBLAS reads it when it starts, so it must be set before the first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    tune_convolutions(True)


def _threads_of_environment() -> int:
    """Return the threads that OMP_NUM_THREADS names: Ray sets it to a worker's CPUs, perhaps after torch's import."""
    named = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(named) if named.isdigit() and int(named) else torch.get_num_threads()


def forbid_tf32() -> None:
    """Switch TF32 off, so that fp32 means fp32: by default torch uses TF32 in convolutions, but not in products."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def tune_convolutions(wanted: bool) -> None:
    """Let cuDNN measure its algorithms for each new shape of a convolution (`wanted`), or choose by its heuristics.

    Measuring pays off for shapes that repeat. It is never on if results must not differ from run to run.
    """
    torch.backends.cudnn.benchmark = wanted and not torch.are_deterministic_algorithms_enabled()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the autocast context for a forward pass and its loss."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=half, enabled=precision != "fp32")


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def to_memory_format(model: nn.Module, channels_last: bool) -> nn.Module:
    """Lay out a model's 4-d weights as its images are, in place, and return the model."""
    return model.to(memory_format=memory_format(channels_last))


def compile_forward(forward: nn.Module) -> None:
    """Compile the module that a step calls, DDP included, in place: its type and its state_dict do not change.

    Drop everything that was compiled before, because a network that has grown is compiled again. Torch counts the
    graphs of each function. By default it runs the function uncompiled from the ninth graph on, and only a worker's
    log says so.
    """
    import torch._dynamo

    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = _GRAPHS
    forward.compile()


def _keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees: otherwise each next step faults the same pages in again.

    By default glibc keeps it in a process's first thread only, and Ray Train trains in another thread. ResNet-20 on two
    workers had 4,000 to 18,000 page faults a second, and 0 with this. Other C libraries have no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, size in _KEEP.items():
            mallopt(parameter, size)
