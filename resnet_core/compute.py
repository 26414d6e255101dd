"""How a worker computes: device, threads, precision, memory format, compilation. All wrap a model from outside.

What "auto" becomes is the same on all ranks: they compute together, so the weakest of them decides.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import nn

from resnet_core.collective import max_of_hosts, max_over_ranks_, rank
from resnet_core.config import ComputeConfig, Precision

# glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD (the last as large as it can be)
_KEEP = {-1: 2**30, -2: 2**26, -3: 2**25}
_TENSOR_CORES = (7, 0)  # compute capability
_HALF: tuple[Precision, ...] = ("bf16", "fp16")  # the faster ones first
_NO_RANK = 2**31
_COMPILERS = 32  # of one process, as Inductor has it
_GRAPHS = 64  # of one piece of code: image sizes, batches, training and evaluation


def pick_device(*, use_gpu: bool) -> torch.device:
    """Return the GPU that is current in this thread, or the CPU; ValueError if torch sees no GPU.

    This sets no device. In a training worker Ray Train does, and `pipelines.rendezvous.worker_device` asks for it;
    anywhere else the current GPU is the first of those that CUDA_VISIBLE_DEVICES shows.
    """
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("torch sees no GPU in this process")
    return torch.device("cuda", torch.cuda.current_device())


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 runs in hardware; emulated on a CPU it is some ten times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def computes_fp16(device: torch.device) -> bool:
    """Tell whether fp16 is fast on the device: a GPU with tensor cores, from compute capability 7.0 (V100, T4) on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TENSOR_CORES


def lacks(precision: Precision, device: torch.device) -> str:
    """Return what the device lacks for a precision; "" if nothing."""
    able = {"fp32": True, "bf16": computes_bf16(device), "fp16": computes_fp16(device)}[precision]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and not able else device.type
    return "" if able else f"{name} has no {precision} instructions"


def why_not_compiled(device: torch.device) -> str:
    """Nothing if a line of code can be compiled for the device, which takes a C++ compiler, and Triton on a GPU."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # whichever part of the tool chain is missing
        return " ".join(str(error).split("\n\n")[0].split())
    return ""


def resolve(
    config: ComputeConfig, device: torch.device, warn: Callable[[str], None] = lambda line: None
) -> ComputeConfig:
    """Return the config with every "auto" decided, alike on all ranks, which call this together.

    auto is the fastest of `benchmarks/step.py` that needs no minutes. Where GPUs are not compiled for, one rank calls
    `warn` with the reason.

    Raises:
        ValueError: the config asks this worker for what it cannot do.
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
    """Divide a node's compilers among the ranks on it; call it before the first compilation.

    Inductor starts up to 32 processes in each rank by itself: 256 on a node of eight.
    """
    each = max(1, min(_COMPILERS, (os.cpu_count() or 1) // ranks))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(each))


def configure(config: ComputeConfig, device: torch.device) -> None:
    """Set this process's threads, arithmetic and determinism, by a `resolve`d config."""
    forbid_tf32()
    if device.type == "cpu":
        _keep_freed_memory()
        if config.threads_per_worker:
            torch.set_num_threads(config.threads_per_worker)
    if config.deterministic:
        # cuBLAS reads it when it starts, hence before the first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    tune_convolutions(True)


def forbid_tf32() -> None:
    """Make fp32 mean fp32: torch has TF32 on for convolutions, and off for products, unless told."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def tune_convolutions(wanted: bool) -> None:
    """Let cuDNN measure its algorithms for each new shape of a convolution, or take what it guesses.

    Measuring pays for shapes that come again. It is never on where results must not differ from run to run.
    """
    torch.backends.cudnn.benchmark = wanted and not torch.are_deterministic_algorithms_enabled()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context of a forward pass and its loss."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=half, enabled=precision != "fp32")


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def to_memory_format(model: nn.Module, channels_last: bool) -> nn.Module:
    """The same model, its 4-d weights laid out as the images are."""
    return model.to(memory_format=memory_format(channels_last))


def compile_forward(forward: nn.Module) -> None:
    """Compile what a step calls, DDP included, in place: its type and its state_dict stay what they were.

    What was compiled before is forgotten: a network that has grown is compiled anew, and torch counts the graphs of one
    piece of code, and from the ninth on runs it uncompiled, with a warning in a worker's log.
    """
    import torch._dynamo

    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = _GRAPHS
    forward.compile()


def _keep_freed_memory() -> None:
    """Let glibc keep the activations that a step frees: each next step would fault the same pages in again.

    It does so by itself in a process's first thread, never in the others, and Ray Train trains in one of those: 4,000
    to 18,000 page faults a second with ResNet-20 on two workers, 0 with this. Other C libraries have no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, size in _KEEP.items():
            mallopt(parameter, size)
