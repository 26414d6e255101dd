"""Machines that an estimate is for: this one, or an instance type with its price and its GPU's speed."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import psutil

from infra.errors import UserError
from infra.nearest import nearest

GIB = 2**30
REFERENCE = ("resnet50", 224)
"""Network and image size of the GPUs' speeds."""
REFERENCE_MULTIPLY_ADDS = 4_089_184_256
"""Of its forward pass, for 1,000 classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A kind of GPU, with the speed at which it trains `REFERENCE`."""

    name: str
    memory: int  # bytes
    half: float  # images/s in bf16 or fp16
    full: float  # images/s in fp32
    factor: float  # the real rate lies between the estimate divided and multiplied by this number
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One machine of a cluster."""

    name: str
    cores: int  # physical, or logical if they are what Ray counts here
    memory: int  # bytes
    gpus: int = 0
    gpu: Gpu | None = None
    hour: float | None = None  # price in US dollars; None = unknown
    here: bool = False


_NVIDIA = "NVIDIA's DeepLearningExamples (ResNet-50 v1.5, PyTorch)"
_BY_MEMORY = "estimated from the memory's speed, compared with a T4 and a V100"
_T4 = Gpu(name="T4", memory=16 * GIB, half=400, full=138, factor=1.5, source="a third of NVIDIA's inference rates")
_A10G = Gpu(name="A10G", memory=24 * GIB, half=750, full=260, factor=2.0, source=_BY_MEMORY)
_L4 = Gpu(name="L4", memory=24 * GIB, half=375, full=130, factor=2.0, source=_BY_MEMORY)
_V100 = Gpu(name="V100", memory=16 * GIB, half=1200, full=367, factor=1.5, source=_NVIDIA)
_A100 = Gpu(name="A100", memory=40 * GIB, half=2470, full=760, factor=1.5, source=_NVIDIA)
_H100 = Gpu(name="H100", memory=80 * GIB, half=2790, full=900, factor=1.5, source="Lambda's deeplearning-benchmark")
_H200 = Gpu(name="H200", memory=141 * GIB, half=3079, full=1000, factor=1.5, source="a PyTorch loop as published")


def _aws(name: str, cores: int, gib: int, gpus: int, gpu: Gpu, hour: float) -> Machine:
    return Machine(name=name, cores=cores, memory=gib * GIB, gpus=gpus, gpu=gpu, hour=hour)


INSTANCES = {
    machine.name: machine
    for machine in (
        _aws("g4dn.xlarge", 2, 16, 1, _T4, 0.526),
        _aws("g4dn.12xlarge", 24, 192, 4, _T4, 3.912),
        _aws("g5.xlarge", 2, 16, 1, _A10G, 1.006),
        _aws("g5.4xlarge", 8, 64, 1, _A10G, 1.624),
        _aws("g5.48xlarge", 96, 768, 8, _A10G, 16.288),
        _aws("g6.xlarge", 2, 16, 1, _L4, 0.805),
        _aws("g6.4xlarge", 8, 64, 1, _L4, 1.323),
        _aws("g6.48xlarge", 96, 768, 8, _L4, 13.35),
        _aws("p3.2xlarge", 4, 61, 1, _V100, 3.06),
        _aws("p3.16xlarge", 32, 488, 8, _V100, 24.48),
        _aws("p4d.24xlarge", 48, 1152, 8, _A100, 21.96),
        _aws("p5.48xlarge", 96, 2048, 8, _H100, 55.04),
        _aws("p5en.48xlarge", 96, 2048, 8, _H200, 63.30),
    )
}
"""AWS instance types: physical cores, memory, GPUs, and the list price of Linux on demand in us-east-1."""


def instance(name: str) -> Machine:
    """Return an instance type. Raise UserError if it is not in the table."""
    if name not in INSTANCES:
        hint = nearest(name, INSTANCES)
        raise UserError(f"--instance {name} is not known{hint}: known are {', '.join(INSTANCES)}")
    return INSTANCES[name]


def this_machine() -> Machine:
    """Return this machine, without its GPUs: their speed is measured, not looked up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(name="this machine", cores=cores, memory=psutil.virtual_memory().total, here=True)


def machines_for(machine: Machine, workers: int) -> int:
    """Return how many machines hold so many workers, one GPU each."""
    return 1 if machine.here or not machine.gpus else math.ceil(max(1, workers) / machine.gpus)
