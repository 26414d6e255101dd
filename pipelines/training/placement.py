"""Resources of a run's workers: `run.use_gpu` and `run.cpus_per_worker`, decided for a cluster.

workers     2, each with a GPU and 4 CPUs; 6 GPUs stay idle: raise run.num_workers to take them
workers     2, each with 1 CPU: the cluster has no GPU
"""

from __future__ import annotations

from dataclasses import dataclass

import infra.cluster
from infra.capacity import cluster_total, cpus_per_gpu, gpus_here
from pipelines.config.sections import RunConfig

_CPUS_OF_A_GPU = 4  # for the rank's own threads: step, batches, copies, NCCL


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The workers of a run on the cluster that this process has joined."""

    workers: tuple[int, int]  # least and most; 0 = this process
    gpu: bool  # one for each worker
    cpus: int  # of each worker
    line: str = ""
    """Line for the user: which resources the run takes, and which stay idle."""

    @property
    def per_worker(self) -> dict[str, float]:
        """A worker's resources in Ray's terms."""
        return {"CPU": self.cpus, **({"GPU": 1} if self.gpu else {})}

    @property
    def held_cpus(self) -> int:
        """CPUs of each worker that Ray counts: 0 if this process is the worker."""
        return self.cpus if self.workers[1] else 0

    def check(self) -> None:
        """Raise UserError if the cluster is too small for the least number of workers and one data task."""
        least = self.workers[0]
        infra.cluster.connect(min_cpus=least * self.cpus + 1, gpus=least if self.gpu else 0)


def least_cpus(run: RunConfig) -> int:
    """Return the CPUs that the run needs, whatever GPUs there are: of the least number of workers and a data task."""
    return run.workers[0] * (run.cpus_per_worker if isinstance(run.cpus_per_worker, int) else 1) + 1


def place(run: RunConfig) -> Placement:
    """Decide the resources of the workers, on the cluster that this process has joined.

    "auto" takes a GPU for each worker if the cluster has GPUs or can add them. If it has fewer GPUs than
    `run.num_workers`, the run has as many workers as there are GPUs. The global batch, and the images in BatchNorm's
    statistics, stay the same (`pipelines.training.build.steps_of_rank`).
    """
    wanted, in_process = run.workers, run.workers[1] == 0
    there = gpus_here() if in_process else cluster_total("GPU")
    gpu, workers = there > 0, wanted
    if isinstance(run.use_gpu, bool):
        gpu = run.use_gpu
    elif gpu and there < wanted[0]:
        workers = (there, there)
    if isinstance(run.cpus_per_worker, int):
        cpus = run.cpus_per_worker
    else:
        cpus = max(1, int(min(_CPUS_OF_A_GPU, cpus_per_gpu() / 2))) if gpu and not in_process else 1
    line = f"workers     {_counted(workers, gpu, cpus)}{_left(run, gpu, there, workers)}"
    return Placement(workers=workers, gpu=gpu, cpus=cpus, line=line)


def _counted(workers: tuple[int, int], gpu: bool, cpus: int) -> str:
    least, most = workers
    if most == 0:
        return f"this process, on {'its GPU' if gpu else 'the CPU'}"
    each = f"{'a GPU and ' if gpu else ''}{cpus} CPU{'s' if cpus > 1 else ''}"
    if most == 1:
        return f"1, with {each}"
    return f"{most if least == most else f'{least} to {most}'}, each with {each}"


def _left(run: RunConfig, gpu: bool, there: int, workers: tuple[int, int]) -> str:
    """Return the GPUs that the run does not take, and the key that changes it."""
    machine = "this machine" if run.workers[1] == 0 else "the cluster"
    if not gpu and run.use_gpu == "auto":
        return f": {machine} has no GPU"
    if not gpu:
        return f"; {_gpus(there)} idle: run.use_gpu = false" if there else ""
    if workers != run.workers:
        return f": {machine} has {_gpus(there, verb=False)}, fewer than run.num_workers = {run.workers[0]}"
    idle = there - max(1, workers[1])
    return f"; {_gpus(idle)} idle: raise run.num_workers to take {'them' if idle > 1 else 'it'}" if idle > 0 else ""


def _gpus(count: int, *, verb: bool = True) -> str:
    counted = f"{count} GPU{'s' if count > 1 else ''}"
    return f"{counted} stay{'' if count > 1 else 's'}" if verb else counted
