"""What is running: for benchmarks and tests that kill processes, or ask what is left of them."""

from __future__ import annotations

import psutil


def command_line(process: psutil.Process) -> str:
    """Its command; empty where it has ended meanwhile, whether its parent has taken note of that or not."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_train_worker(process: psutil.Process) -> bool:
    name = command_line(process)
    return name.startswith("ray::") and "TrainWorker" in name
