"""Decide where models compute: on a GPU that Ray assigns or on CPUs, in this process or in a Ray task.

A driver that has joined a cluster computes nothing itself. It runs on the head, which has no GPU, few CPUs, and one
OpenMP thread. The model is sent to the task as data, so workers need no access to MLflow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from infra.capacity import cluster_total, ingest_options, node_types, unknown_may_come
from infra.errors import UserError, user_error
from pipelines.config.sections import UseGpu
from pipelines.evaluation.scoring import ON_CPU, BatchLimit, EvalData, Predict

if TYPE_CHECKING:
    import ray

OPTION, KEY = "--use-gpu", "run.use_gpu"
ON_GPU = BatchLimit(rows=4096, pixels=256 * 224**2)
"""Activations of one forward pass in fp32 stay below about 6 GB, which every data-centre GPU has."""
_MOST_TASKS = 16  # decoding tasks for one GPU
_OUT_OF_MEMORY = "OutOfMemoryError"  # name of torch's exception; torch is not imported here

P = ParamSpec("P")
T = TypeVar("T")


class PortableModel(Protocol):
    """A model as data that is sent to other processes; a module never is."""

    def open(self, device: str) -> Predict:
        """Load the model on a device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferencePlacement:
    """The devices that models compute on, and the option that changes them."""

    gpu: bool = False
    description: str = "CPUs"  # for people: "1 GPU", or "CPUs" and any unused GPUs
    setting: str = OPTION

    @property
    def options(self) -> dict[str, Any]:
        """Resources of a Ray task or actor with one copy of a model."""
        if not self.gpu:
            return {"num_cpus": 1, "num_gpus": 0}
        return {"num_cpus": 1 if cluster_total("CPU") > 1 else 0, "num_gpus": 1}  # keeps a CPU free to decode

    @property
    def limit(self) -> BatchLimit:
        """Limit on the images of one forward pass."""
        return ON_GPU if self.gpu else ON_CPU

    def device(self) -> str:
        """Return the device of a process that Ray started with `options`. Raises UserError if torch sees no GPU."""
        return gpu_device(self.setting) if self.gpu else "cpu"


HERE = InferencePlacement()
"""The CPUs of this process, or those of the cluster that it has joined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Device, batch limit and decoding tasks of one piece of work."""

    device: str = "cpu"
    limit: BatchLimit = ON_CPU
    tasks: int = 0  # decoding tasks at once; 0 = `EvalData.window`

    def fed(self, data: EvalData) -> EvalData:
        """Return the data, decoded by `tasks` tasks at once; unchanged if that is 0."""
        return replace(data, window=self.tasks) if self.tasks else data


def choose(use_gpu: UseGpu, *, copies: int = 1, setting: str = OPTION) -> InferencePlacement:
    """Choose GPUs or CPUs for `copies` of a model that are in use at once. Without a running Ray, choose CPUs.

    Raises:
        UserError: `use_gpu` is true and the cluster has too few GPUs, including nodes that it may still start.
    """
    import ray

    most = cluster_total("GPU") if ray.is_initialized() else 0
    if use_gpu is False:
        unused = f" ({setting}=false leaves {_gpus(most)} unused)" if most else ""
        return InferencePlacement(description=f"CPUs{unused}", setting=setting)
    if most >= copies or (use_gpu is True and ray.is_initialized() and unknown_may_come()):
        busy = "" if _free_gpus() >= copies else ", once there are free ones"
        return InferencePlacement(gpu=True, description=f"{_gpus(copies)}{busy}", setting=setting)
    if use_gpu is True:
        remedy = f"set {setting}=auto, or " + (
            "lower --replicas" if most else "set RAY_ADDRESS to join a cluster that has one"
        )
        raise UserError(f"{setting}=true needs {_gpus(copies)} and the cluster has {most or 'none'}: {remedy}")
    return InferencePlacement(
        description=f"CPUs ({copies} GPUs are needed, the cluster has {most})" if most else "CPUs", setting=setting
    )


def compute(
    placement: InferencePlacement, work: Callable[Concatenate[Resources, P], T], *arguments: P.args, **named: P.kwargs
) -> T:
    """Run `work` in a Ray task if it needs a GPU or this process has joined a cluster; else run it here.

    Raises:
        UserError: `work` raises it, torch sees no GPU although Ray assigned one, or the GPU has too little memory.
    """
    import ray

    if not ray.is_initialized() or not (placement.gpu or _joined()):
        return work(Resources(), *arguments, **named)
    cpus = 0 if placement.gpu else _half_a_node()
    placed = placement.options if placement.gpu else {**ingest_options(), "num_cpus": cpus}
    # "DEFAULT": inside a Tune trial, Ray would put the task into the trial's placement group, where it waits forever
    task: Any = ray.remote(**placed, scheduling_strategy="DEFAULT")(_task)
    reference: ray.ObjectRef[T] = task.remote(placement, cpus, work, arguments, named)
    return _result(reference)


def check(placement: InferencePlacement) -> None:
    """Raise UserError if Ray assigns GPUs and torch sees none. Actors would fail later, with tracebacks."""
    if placement.gpu:
        compute(placement, _nothing)


def gpu_device(setting: str) -> str:
    """Return the GPU that Ray has assigned to this process, and switch TF32 off, so that fp32 means fp32.

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
    """Turn torch's out-of-memory error into a UserError of one line."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != _OUT_OF_MEMORY:
            raise
        raise UserError(f"the GPU has too little memory ({error}): free it, or set {setting}=false") from error


def _task(
    placement: InferencePlacement, cpus: int, work: Callable[..., T], arguments: tuple[Any, ...], named: dict[str, Any]
) -> T:
    if not placement.gpu:
        import torch

        torch.set_num_threads(cpus)  # Ray's shells export OMP_NUM_THREADS=1
        return work(Resources(tasks=max(cpus, 3)), *arguments, **named)
    resources = Resources(
        device=placement.device(), limit=placement.limit, tasks=max(3, min(_MOST_TASKS, cluster_total("CPU") - 1))
    )
    with enough_memory(placement.setting):
        return work(resources, *arguments, **named)


def _result(reference: ray.ObjectRef[T]) -> T:
    import ray

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
    """Return True if this process has joined a cluster; False if it has started Ray itself."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def _half_a_node() -> int:
    """Return the CPUs of a task that computes while other tasks decode: half of the smallest node's, at least one."""
    import ray

    present = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    may_come = [each.resources.get("CPU", 0.0) for each in node_types()]
    sizes = [cpus for cpus in present if cpus] or [cpus for cpus in may_come if cpus] or [2.0]
    return max(1, int(min(sizes)) // 2)


def _nothing(resources: Resources) -> None:
    """Do nothing: `compute` looks for the device before it runs its work."""
