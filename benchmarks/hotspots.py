"""Profile of a training step: times of kernels on a GPU or operators on a CPU, summed by what they do."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch.profiler import ProfilerActivity, profile

# Groups of kernels and operators by name; the first pattern that matches counts. Inductor names a fused kernel after
# its operators, so fused kernels come first. cuDNN and CUTLASS call their convolutions fprop, dgrad or wgrad.
GROUPS = {
    "fused, with a reduction": r"^triton_(red|per)",
    "fused, element by element": r"^triton_poi",
    "fused": r"cpp_fused|CompiledFxGraph|CompiledFunction|Torch-Compiled Region",
    "layout and dtype changes": r"nchwToNhwc|nhwcToNchw|transpose|_copy_kernel|aten::(copy_|to|_to_copy|contiguous)$",
    "batch norm": r"batch_?norm|bn_(fw|bw)",
    "pooling": r"pool",
    "convolution": r"conv|xmma|fprop|dgrad|wgrad|cudnn|cutlass",
    "matrix product": r"gemm|gemv|cublas|nvjet|splitKreduce|aten::(add)?mm$|aten::linear",
    "optimizer": r"multi_tensor|foreach|fused_sgd|Optimizer",
    "memory": r"Memcpy|Memset|aten::(fill_|zero_|empty.*|clone|new_.*)$",
    "element by element": r"elementwise|aten::(add|sub|mul|div|relu|clamp|threshold|where)",
    "loss and reductions": r"softmax|nll_loss|reduce|cross_entropy|aten::(sum|mean|argmax)",
}
MATRIX_GROUPS = ("convolution", "matrix product")
SHOWN = 15  # kernels


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A kernel or an operator: means over the profiled steps; `ms` does not include what it calls."""

    name: str
    ms: float
    calls: float

    @property
    def group(self) -> str:
        return next((group for group, names in GROUPS.items() if re.search(names, self.name)), "other")


def profiled(update: Callable[[int], object], steps: range, device: torch.device) -> list[Kernel]:
    """Profile the steps and return their kernels, the longest first."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as recorded:
        for step in steps:
            update(step)
        if on_gpu:
            torch.cuda.synchronize(device)
    track = "CUDA" if on_gpu else "CPU"
    kernels = [
        Kernel(
            name=event.key,
            ms=(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / len(steps),
            calls=event.count / len(steps),
        )
        for event in recorded.key_averages()
        # on a GPU's track, an annotation spans kernels that are counted separately
        if event.device_type.name == track and not (on_gpu and event.is_user_annotation)
    ]
    return sorted(kernels, key=lambda kernel: -kernel.ms)


def report(kernels: list[Kernel], step_ms: float, flops: float, peak: float | None) -> Iterator[str]:
    """Yield lines: time by group, speed of the matrix products and convolutions, and the longest kernels.

    Args:
        step_ms: time of a step without the profiler.
        flops: FLOPs of a step, nearly all of them in convolutions and matrix products.
        peak: the device's peak in FLOP/s, if known.
    """
    groups, calls = defaultdict[str, float](float), defaultdict[str, float](float)
    for kernel in kernels:
        groups[kernel.group] += kernel.ms
        calls[kernel.group] += kernel.calls
    busy = sum(groups.values())
    yield f"a step takes {step_ms:.2f} ms; under the profiler its kernels take {busy:.2f} ms:"
    for group, ms in sorted(groups.items(), key=itemgetter(1), reverse=True):
        yield f"  {ms / busy:6.1%} {ms:9.3f} ms {calls[group]:7.0f} calls  {group}"
    if matrix_ms := sum(groups[group] for group in MATRIX_GROUPS):
        rate = flops / matrix_ms * 1000
        of_peak = f", {rate / peak:.1%} of the device's bf16 peak" if peak else ""
        yield f"  convolutions and matrix products run at {rate / 1e12:,.3g} TFLOP/s{of_peak}"
    yield f"  no kernel runs during {max(0.0, 1 - busy / step_ms):.1%} of a step: the host is slower than the device"
    yield "the longest:"
    for kernel in kernels[:SHOWN]:
        yield f"  {kernel.ms / busy:6.1%} {kernel.ms:9.3f} ms {kernel.calls:7.0f} calls  {kernel.name[:100]}"
