"""Where models compute: on a GPU that Ray assigns or on CPUs, in this process or in a Ray task.

A driver that has joined a cluster computes nothing itself: it runs on the head, which has no GPU, few CPUs, and one
thread for OpenMP. The model goes to the task as data, so that no worker has to reach MLflow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from infra.capacity import ingest_options, most_of, node_types, unknown_may_come
from infra.errors import UserError
from pipelines.scoring import ON_CPU, BatchLimit, EvalData, Predict

if TYPE_CHECKING:
    import ray

UseGpu = bool | Literal["auto"]
"""As `run.use_gpu` in a recipe: "auto" takes GPUs where the cluster has them or may get them."""
OPTION, KEY = "--use-gpu", "run.use_gpu"
ON_GPU = BatchLimit(rows=4096, pixels=256 * 224**2)
"""Activations of one forward pass in fp32 stay below some 6 GB, which every data-centre GPU has."""
_MOST_TASKS = 16  # that decode for one GPU
_OUT_OF_MEMORY = "OutOfMemoryError"  # of torch, which is not imported here

P = ParamSpec("P")
T = TypeVar("T")


class Source(Protocol):
    """A model as data that goes to other processes; a module never does."""

    def open(self, device: str) -> Predict:
        """Load the model on a device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What models compute on, and how the user chooses otherwise."""

    gpu: bool = False
    told: str = "CPUs"  # for people: "1 GPU", or "CPUs", and what was not taken
    setting: str = OPTION

    @property
    def options(self) -> dict[str, Any]:
        """Resources of a Ray task or actor with one copy of a model."""
        if not self.gpu:
            return {"num_cpus": 1, "num_gpus": 0}
        return {"num_cpus": 1 if most_of("CPU") > 1 else 0, "num_gpus": 1}  # the other CPU decodes

    @property
    def limit(self) -> BatchLimit:
        """How much goes through a model at once."""
        return ON_GPU if self.gpu else ON_CPU

    def device(self) -> str:
        """Return the device of this process, which has the `options`. Raises UserError where torch sees no GPU."""
        return gpu_device(self.setting) if self.gpu else "cpu"


HERE = Choice()
"""The CPUs of this process, or those of the cluster that it has joined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class On:
    """Where a piece of work finds itself."""

    device: str = "cpu"
    limit: BatchLimit = ON_CPU
    tasks: int = 0  # that decode for it at once; 0 = as the data says

    def fed(self, data: EvalData) -> EvalData:
        """Return the same data, decoded by as many tasks as fit."""
        return replace(data, window=self.tasks) if self.tasks else data


def choose(use_gpu: UseGpu, *, copies: int = 1, setting: str = OPTION) -> Choice:
    """Decide where `copies` of a model compute that are in use at once; Ray has been joined or started, else CPUs.

    Raises:
        UserError: `use_gpu` is true, and the cluster has too few GPUs, with all nodes that may come.
    """
    import ray

    most = most_of("GPU") if ray.is_initialized() else 0
    if use_gpu is False:
        left = f" ({setting}=false leaves {_gpus(most)} unused)" if most else ""
        return Choice(told=f"CPUs{left}", setting=setting)
    if most >= copies or (use_gpu is True and ray.is_initialized() and unknown_may_come()):
        busy = "" if _free_gpus() >= copies else ", once there are free ones"
        return Choice(gpu=True, told=f"{_gpus(copies)}{busy}", setting=setting)
    if use_gpu is True:
        remedy = f"set {setting}=auto, or " + (
            "lower --replicas" if most else "join a cluster that has one by RAY_ADDRESS"
        )
        raise UserError(f"{setting}=true needs {_gpus(copies)} and the cluster has {most or 'none'}: {remedy}")
    return Choice(told=f"CPUs ({copies} GPUs are needed, the cluster has {most})" if most else "CPUs", setting=setting)


def compute(choice: Choice, work: Callable[Concatenate[On, P], T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do the work in a Ray task, where it needs a GPU or this process runs on the head of a cluster; else here.

    Raises:
        UserError: the work does, or torch sees no GPU where Ray has assigned one, or its memory is too small.
    """
    import ray

    if not ray.is_initialized() or not (choice.gpu or _joined()):
        return work(On(), *arguments, **named)
    cpus = 0 if choice.gpu else _half_a_node()
    placed = choice.options if choice.gpu else {**ingest_options(), "num_cpus": cpus}
    # "DEFAULT": below Tune a task would be put into the trial's own placement group, where it waits for ever
    task: Any = ray.remote(**placed, scheduling_strategy="DEFAULT")(_task)
    reference: ray.ObjectRef[T] = task.remote(choice, cpus, work, arguments, named)
    return _result(reference)


def check(choice: Choice) -> None:
    """Raise UserError where Ray assigns GPUs and torch sees none, before actors would say so in tracebacks."""
    if choice.gpu:
        compute(choice, _nothing)


def gpu_device(setting: str) -> str:
    """Return the GPU that Ray has assigned to this process; its fp32 is fp32, in convolutions too.

    Raises:
        UserError: torch sees no GPU.
    """
    import ray
    import torch

    from resnet_core.compute import forbid_tf32

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    assigned = [str(each) for each in ray.get_gpu_ids()]
    if not torch.cuda.is_available():
        raise UserError(
            f"Ray assigned GPU {', '.join(assigned)} to a process in which torch {torch.__version__} finds no CUDA "
            f"device (CUDA_VISIBLE_DEVICES={visible}): install NVIDIA's driver there, or set {setting}=false"
        )
    forbid_tf32()
    listed = visible.split(",")
    return f"cuda:{listed.index(assigned[0]) if assigned and assigned[0] in listed else 0}"


@contextmanager
def enough_memory(setting: str) -> Iterator[None]:
    """Turn what a GPU raises whose memory is too small into one line."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != _OUT_OF_MEMORY:
            raise
        raise UserError(f"the GPU has too little memory ({error}): free it, or set {setting}=false") from error


def _task(choice: Choice, cpus: int, work: Callable[..., T], arguments: tuple[Any, ...], named: dict[str, Any]) -> T:
    if not choice.gpu:
        import torch

        torch.set_num_threads(cpus)  # Ray's shells export OMP_NUM_THREADS=1
        return work(On(tasks=max(cpus, 3)), *arguments, **named)
    on = On(device=choice.device(), limit=choice.limit, tasks=max(3, min(_MOST_TASKS, most_of("CPU") - 1)))
    with enough_memory(choice.setting):
        return work(on, *arguments, **named)


def _result(reference: ray.ObjectRef[T]) -> T:
    import ray

    from pipelines.failures import user_error

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        found = user_error(error)
        if found is None:
            raise
        raise found from None


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count > 1 else ''}"


def _free_gpus() -> int:
    import ray

    return int(ray.available_resources().get("GPU", 0))


def _joined() -> bool:
    """Whether Ray is a cluster's, not one that this process has started."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def _half_a_node() -> int:
    """CPUs of a task that computes while others decode for it: half of the smallest node's, at least one."""
    import ray

    there = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    may_come = [each.resources.get("CPU", 0.0) for each in node_types()]
    sizes = [cpus for cpus in there if cpus] or [cpus for cpus in may_come if cpus] or [2.0]
    return max(1, int(min(sizes)) // 2)


def _nothing(on: On) -> None:
    """Only look for the device."""
