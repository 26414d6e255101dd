"""What the cloud answered when the autoscaler asked it for nodes, in the cloud's own words.

Ray's status says that a launch has failed, without the reason: `LaunchNodeError` is made without details. Only the log
of its monitor has the text, so that is read, on the head, where drivers of jobs run.
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
class Refusal:
    """The last answer to a request for nodes of one type."""

    node_type: str
    code: str  # EC2's, such as InsufficientInstanceCapacity; "" where the answer has none
    text: str

    @property
    def is_quota(self) -> bool:
        """Whether the account's quota is the reason: waiting does not help then."""
        return self.code in _QUOTAS

    def __str__(self) -> str:
        """Return one line with the cloud's own words."""
        answer = f"{self.code}: {self.text}" if self.code else self.text
        return f"{self.node_type} was refused: {' '.join(answer.split())[:_REASON_CHARS]}"


def recent_refusals() -> list[Refusal]:
    """Return the last refusal of each node type within 15 minutes; none where no autoscaler runs on this machine."""
    folder = _logs_of_the_autoscaler()
    if folder is None:
        return []
    last: dict[str, tuple[datetime, Refusal]] = {}
    for at, refusal in _read(folder / _LOG):
        last[refusal.node_type] = at, refusal
    oldest = datetime.fromtimestamp(time.time() - _LATELY_S)
    return [refusal for at, refusal in last.values() if at >= oldest]


def _read(log: Path) -> Iterator[tuple[datetime, Refusal]]:
    """Every refusal in the end of the log, oldest first; times are those of this machine's zone, as Ray writes them."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:  # of another user, or not there yet
        return
    for found in _FAILED.finditer(text):
        answer = _OF_RAY.match(found["reason"])
        refusal = Refusal(
            node_type=found["type"],
            code=answer["code"] if answer else "",
            text=answer["text"] if answer else found["reason"],
        )
        yield datetime.strptime(found["time"], "%Y-%m-%d %H:%M:%S"), refusal


def _logs_of_the_autoscaler() -> Path | None:
    folders = (options.get("--logs-dir") for options in autoscaler_options())
    return next((Path(folder) for folder in folders if folder), None)
