"""Loaded by every Python process that finds this folder on PYTHONPATH: writes down what the pipeline does, and when.

The pipelines have no hook for their benchmarks, and need none. Where RESNET_RAY_TRACE names a folder, each process
appends JSON lines to a file of its own there: {"t": Unix seconds, "event": NAME, …}. `benchmarks.events` reads them.

"…:begin" and "…:end" of a function are written the first time that the process calls it. "share" is written for every
step that a worker draws, with the ids that went into it: taken from the rows themselves, not from any bookkeeping.
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
    "pipelines.driver": ["train"],
    "infra.cluster": ["connect"],
    "pipelines.launch": ["launch"],
    "pipelines.worker": ["train_worker"],
    "pipelines.assembly": ["build_state"],
    "pipelines.feed": ["Feed.base"],
    "resnet_core.step": ["train_step"],
}

_BORN = time.time_ns()  # process ids come again


def write(event: str, **content: Any) -> None:
    """Append a line that survives a `kill -9` of this process."""
    with Path(FOLDER or ".", f"{os.getpid()}-{_BORN}.jsonl").open("a") as file:
        file.write(json.dumps({"t": time.time(), "event": event, **content}) + "\n")


def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function`, its first call written down."""
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


def journaled(share: Callable[..., Any], filler: int) -> Callable[..., Any]:
    """`Feed._share`, the (epoch, id) of every row of the step written down."""

    @functools.wraps(share)
    def wrapper(feed: Any, rows: list[dict[str, Any]], step: int) -> Any:
        drawn = share(feed, rows, step)
        pairs = [pair for block in rows for pair in zip(block["epoch"].tolist(), block["id"].tolist(), strict=True)]
        write("share", rank=int(os.environ.get("RANK", "0")), step=step, ids=[p for p in pairs if p[1] != filler])
        return drawn

    return wrapper


def instrument(module: ModuleType) -> None:
    """Wrap what is watched in a module that has just been executed."""
    for path in TIMED[module.__name__]:
        *owners, name = path.split(".")
        owner: Any = functools.reduce(getattr, owners, module)
        setattr(owner, name, timed(getattr(owner, name), path))
    if module.__name__ == "pipelines.feed":
        module.Feed._share = journaled(module.Feed._share, module.FILLER)


class Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the others find a watched module, and instruments it when it has been executed."""

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
