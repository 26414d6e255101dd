"""Processes of their own for what races and what is killed: they start in a tenth of a second, from a warm server."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm"])
_LIMIT_S = 250.0

KILLED = -signal.SIGKILL


def exit_codes(target: Callable[..., object], arguments: Iterable[tuple[object, ...]]) -> list[int | None]:
    """Call `target` with each of `arguments`, all at once; how each process ended."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(target=_reporting, args=(f"{folder}/{place}", target, each))
            for place, each in enumerate(arguments)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_LIMIT_S)
        codes = [process.exitcode for process in processes]
        for place, (process, code) in enumerate(zip(processes, codes, strict=True)):
            process.kill()
            if code not in (0, KILLED):
                sys.stdout.write(f"process {place} ended with {code}:\n{Path(folder, str(place)).read_text()}\n")
    return codes


def _reporting(stderr: str, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    with Path(stderr).open("wb") as file:
        os.dup2(file.fileno(), 2)
    target(*arguments)


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
