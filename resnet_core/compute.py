"""How a worker computes: device, threads, precision, memory format, compilation. All wrap a model from outside."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import nn

from resnet_core.config import ComputeConfig, Precision

# glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD (the last as large as it can be)
_KEEP = {-1: 2**30, -2: 2**26, -3: 2**25}


def pick_device(*, use_gpu: bool, local_rank: int = 0) -> torch.device:
    """The worker's own GPU, made the current one, or the CPU."""
    if not use_gpu:
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if local_rank >= visible:
        raise ValueError(f"use_gpu needs GPU number {local_rank} on this worker, and torch sees {visible}")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 runs in hardware; emulated on a CPU it is some ten times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def why_not_compiled(device: torch.device) -> str:
    """Nothing if a line of code can be compiled for the device, which takes a C++ compiler, and Triton on a GPU."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # whichever part of the tool chain is missing
        return " ".join(str(error).split("\n\n")[0].split())
    return ""


def resolve(config: ComputeConfig, device: torch.device) -> ComputeConfig:
    """The same with every "auto" decided for this device: the fastest of `benchmarks/step.py` that needs no minutes."""
    precision, compiled = config.precision, config.compile
    if precision == "auto":
        precision = "bf16" if computes_bf16(device) else "fp32"
    if compiled == "auto":
        compiled = device.type == "cuda" and not why_not_compiled(device)
    return replace(config, precision=precision, compile=compiled)


def configure(config: ComputeConfig, device: torch.device) -> None:
    """Set this process's threads and determinism, by a `resolve`d config; ValueError if the device has no bf16."""
    if config.precision == "bf16" and not computes_bf16(device):
        raise ValueError(f'compute.precision must be "fp32" on this worker: its {device.type} has no bf16 instructions')
    if device.type == "cpu":
        _keep_freed_memory()
        if config.threads_per_worker:
            torch.set_num_threads(config.threads_per_worker)
    if config.deterministic:
        # cuBLAS reads it when it starts, hence before the first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context of a forward pass and its loss."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def to_memory_format(model: nn.Module, channels_last: bool) -> nn.Module:
    """The same model, its 4-d weights laid out as the images are."""
    return model.to(memory_format=memory_format(channels_last))


def compile_forward(forward: nn.Module) -> None:
    """Compile what a step calls, DDP included, in place: its type and its state_dict stay what they were."""
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
