"""The cloud's own error messages for the autoscaler's failed launches.

Ray's status says that a launch failed, but not why: Ray makes `LaunchNodeError` without details. Only the log of its
monitor has the reason. So this module reads that log on the head, where drivers of jobs run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from infra.capacity import autoscaler_options

_LATELY_S = 900.0
_TAIL_BYTES = 1 << 18
_LOG = "monitor.log"
_FAILED = re.compile(
    r"^(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+\s.*"
    r"Failed to launch \d+ nodes of type (?P<type>\S+): (?P<reason>.*)$",
    re.MULTILINE,
)
_OF_RAY = re.compile(r"Node Launch Exception \((?P<code>[^)]*)\): (?P<text>.*)")
_QUOTAS = ("VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "InstanceLimitExceeded", "VolumeLimitExceeded")
_REASON_CHARS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchFailure:
    """The cloud's last refusal of nodes of one type."""

    node_type: str
    code: str  # of EC2, such as InsufficientInstanceCapacity; "" if the answer has none
    text: str

    @property
    def is_quota(self) -> bool:
        """Return whether the account's quota is the reason, so that waiting does not help."""
        return self.code in _QUOTAS

    def __str__(self) -> str:
        """Return one line with the cloud's own words."""
        answer = f"{self.code}: {self.text}" if self.code else self.text
        return f"{self.node_type} was refused: {' '.join(answer.split())[:_REASON_CHARS]}"


def recent_launch_failures() -> list[LaunchFailure]:
    """Return the last refusal of each node type within 15 minutes; empty if no autoscaler runs on this machine."""
    folder = _logs_of_the_autoscaler()
    if folder is None:
        return []
    last: dict[str, tuple[datetime, LaunchFailure]] = {}
    for at, refusal in _read(folder / _LOG):
        last[refusal.node_type] = at, refusal
    oldest = datetime.fromtimestamp(time.time() - _LATELY_S)
    return [refusal for at, refusal in last.values() if at >= oldest]


def _read(log: Path) -> Iterator[tuple[datetime, LaunchFailure]]:
    """Yield every refusal near the end of the log, oldest first, with its time in this machine's time zone."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:  # the log belongs to another user, or does not exist yet
        return
    for found in _FAILED.finditer(text):
        answer = _OF_RAY.match(found["reason"])
        refusal = LaunchFailure(
            node_type=found["type"],
            code=answer["code"] if answer else "",
            text=answer["text"] if answer else found["reason"],
        )
        yield datetime.strptime(found["time"], "%Y-%m-%d %H:%M:%S"), refusal


def _logs_of_the_autoscaler() -> Path | None:
    folders = (options.get("--logs-dir") for options in autoscaler_options())
    return next((Path(folder) for folder in folders if folder), None)
