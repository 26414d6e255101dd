"""Section `compute` of a recipe: how a worker computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_core.config.check import require, require_choice

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
AllReduceChoice = Literal["fp32", "bf16"]
CompileChoice = Literal["auto", True, False]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """Settings of a worker's arithmetic and speed; they change results by rounding only."""

    precision: PrecisionChoice = "auto"
    """Arithmetic: fp32 = IEEE single precision without TF32; bf16 = autocast, with weights, norm statistics and the
    loss in fp32; fp16 = as bf16, with a scaled loss, on GPUs only. auto = bf16 if every worker's device has it in
    hardware, else fp16 if all are GPUs with tensor cores (V100, T4), else fp32; a resumed run keeps its precision."""
    all_reduce: AllReduceChoice = "fp32"
    """Precision in which several workers sum their gradients: bf16 sends half the bytes, and rounds each gradient to 8
    bits of mantissa. It is worth a trial where nodes share a network of 25 Gbit/s or less."""
    channels_last: bool = True
    """Keep activations in channels-last order, in which convolutions are faster."""
    compile: CompileChoice = "auto"
    """Compile the training step by torch.compile; auto = on GPUs, if every worker has the compilers. A run that does
    not compile logs why."""
    microbatch_size: int = 0
    """Maximum number of images in one forward pass of a worker; 0 = all images of the worker's rank batch. A run with
    `run.num_workers = [min, max]` takes the size of a rank batch on max workers."""
    threads_per_worker: int = 1
    """Threads of torch within one operation, on CPU workers; 0 = torch's default."""
    deterministic: bool = False
    """Raise an error on operations whose result may differ from run to run."""

    def __post_init__(self) -> None:
        require_choice("compute.precision", self.precision, PrecisionChoice)
        require_choice("compute.all_reduce", self.all_reduce, AllReduceChoice)
        require(self.compile in ("auto", True, False), "compute.compile", '"auto", true or false', self.compile)
        require(self.microbatch_size >= 0, "compute.microbatch_size", "at least 0", self.microbatch_size)
        require(self.threads_per_worker >= 0, "compute.threads_per_worker", "at least 0", self.threads_per_worker)
