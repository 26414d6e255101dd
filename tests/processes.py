"""Processes of their own for what races and what is killed: they start in a tenth of a second, from a warm server."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm", "infra.registry.champion"])
_LIMIT_S = 250.0

KILLED = -signal.SIGKILL


def exit_codes(target: Callable[..., object], arguments: Iterable[tuple[object, ...]]) -> list[int | None]:
    """Call `target` with each of `arguments`, all at once; how each process ended."""
    processes = [_CONTEXT.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_LIMIT_S)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def kill_at(point: str) -> None:
    """End this process, as `kill -9` does, around a call of MLflow's client: "METHOD before|after NTH"."""
    from mlflow import MlflowClient

    method, when, nth = point.split()
    original, calls = getattr(MlflowClient, method), itertools.count(1)

    def killing(self: object, *arguments: object, **named: object) -> object:
        here = next(calls) == int(nth)
        if here and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, *arguments, **named)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(MlflowClient, method, killing)
