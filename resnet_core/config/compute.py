"""How a worker computes: the recipe's section `compute`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_core.config.check import require, require_choice

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
CompileChoice = Literal["auto", True, False]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """How a worker computes; none of it changes what is computed, beyond rounding."""

    precision: PrecisionChoice = "auto"
    """Arithmetic. fp32 = IEEE single precision, also in convolutions, and no TF32; bf16 = autocast, with weights, norm
    statistics and the loss in fp32; fp16 = likewise, with a scaled loss, on GPUs. auto = bf16 where every worker's
    device computes it in hardware, else fp16 where all are GPUs with tensor cores (V100, T4), else fp32; a resumed run
    keeps its precision."""
    channels_last: bool = True
    """Keep activations in channels-last order, which convolutions are faster in."""
    compile: CompileChoice = "auto"
    """torch.compile of what a step calls; auto = on GPUs, where every worker has the compilers; a
    run that is not compiled says why."""
    microbatch_size: int = 0
    """Most images in one forward pass of one worker; 0 = the worker's whole share of the step, or, in a run
    of `run.num_workers = [min, max]`, what the share is on max workers."""
    threads_per_worker: int = 1
    """Torch's threads within one operation, on CPU workers; 0 = torch's own default."""
    deterministic: bool = False
    """Refuse operations whose result may differ from run to run."""

    def __post_init__(self) -> None:
        require_choice("compute.precision", self.precision, PrecisionChoice)
        require(self.compile in ("auto", True, False), "compute.compile", '"auto", true or false', self.compile)
        require(self.microbatch_size >= 0, "compute.microbatch_size", "at least 0", self.microbatch_size)
        require(self.threads_per_worker >= 0, "compute.threads_per_worker", "at least 0", self.threads_per_worker)
