"""Trace of a pipeline for benchmarks; every Python process with this folder on PYTHONPATH loads this file.

The pipelines need no hook for it. If RESNET_RAY_TRACE names a folder, each process appends JSON lines to its own file
there: {"t": Unix seconds, "event": NAME, …}. `benchmarks.events` reads them.

"…:begin" and "…:end" are written when the process calls a function for the first time. "batch" is written for every
step of a worker, with the ids in its batch. The ids are read from the rows, not from any bookkeeping.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = os.environ.get("RESNET_RAY_TRACE")
TIMED = {
    "pipelines.training.driver": ["train"],
    "infra.cluster": ["connect"],
    "pipelines.training.trainer": ["launch"],
    "pipelines.training.worker": ["train_worker"],
    "pipelines.training.build": ["build_state"],
    "pipelines.training.batches": ["RankBatches.base"],
    "resnet_core.step": ["train_step"],
}

_BORN = time.time_ns()  # the system reuses process ids


def write(event: str, **content: Any) -> None:
    """Append a line, which survives a `kill -9` of this process."""
    with Path(FOLDER or ".", f"{os.getpid()}-{_BORN}.jsonl").open("a") as file:
        file.write(json.dumps({"t": time.time(), "event": event, **content}) + "\n")


def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wrap `function` so that its first call is traced."""
    called = False

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal called
        if called:
            return function(*args, **kwargs)
        called = True
        write(f"{name}:begin")
        result = function(*args, **kwargs)
        write(f"{name}:end")
        return result

    return wrapper


def journaled(rank_batch: Callable[..., Any], filler: int) -> Callable[..., Any]:
    """Wrap `RankBatches._rank_batch` so that the (epoch, id) of every row of a step is traced."""

    @functools.wraps(rank_batch)
    def wrapper(batches: Any, rows: list[dict[str, Any]], step: int) -> Any:
        made = rank_batch(batches, rows, step)
        pairs = [pair for block in rows for pair in zip(block["epoch"].tolist(), block["id"].tolist(), strict=True)]
        write("batch", rank=int(os.environ.get("RANK", "0")), step=step, ids=[p for p in pairs if p[1] != filler])
        return made

    return wrapper


def instrument(module: ModuleType) -> None:
    """Wrap the traced functions of a module that has just been executed."""
    for path in TIMED[module.__name__]:
        *owners, name = path.split(".")
        owner: Any = functools.reduce(getattr, owners, module)
        setattr(owner, name, timed(getattr(owner, name), path))
    if module.__name__ == "pipelines.training.batches":
        module.RankBatches._rank_batch = journaled(module.RankBatches._rank_batch, module.FILLER)


class Finder(importlib.abc.MetaPathFinder):
    """Instruments a traced module after its execution; Python's usual finder finds the module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in TIMED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            instrument(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FOLDER:
    sys.meta_path.insert(0, Finder())
