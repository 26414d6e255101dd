"""Command lines of processes, for benchmarks and tests that kill processes or look for leftover ones."""

from __future__ import annotations

import psutil


def command_line(process: psutil.Process) -> str:
    """Return the command of a process; "" if it has ended, also if its parent has not waited for it yet."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_train_worker(process: psutil.Process) -> bool:
    name = command_line(process)
    return name.startswith("ray::") and "TrainWorker" in name
