"""Runs of a pipeline as a user starts them, and their events from `benchmarks/trace/sitecustomize.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRACE = Path(__file__).resolve().parent / "trace"
FASHION = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package dataset-fashion-mnist

Event = dict[str, Any]


def start(
    recipe: str,
    settings: Mapping[str, object],
    *,
    log: Path,
    trace: Path | None = None,
    tracking: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python pipelines/train.py RECIPE --set …` and append its output to `log`.

    MLflow is at `tracking`; without it, in the folder of the runs.
    """
    command = [sys.executable, "pipelines/train.py", recipe]
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    if tracking:
        environment["MLFLOW_TRACKING_URI"] = tracking
    if trace:
        trace.mkdir(parents=True, exist_ok=True)
        environment |= {"RESNET_RAY_TRACE": str(trace), "PYTHONPATH": str(TRACE)}
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def read(trace: Path) -> list[Event]:
    """Return the events of all processes so far, sorted by time; a line that a kill cut short is skipped."""
    return sorted(_events(trace), key=lambda event: event["t"])


def _events(trace: Path) -> Iterator[Event]:
    for file in trace.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
