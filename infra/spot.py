"""On the head of a cluster on AWS: where EC2 has no spot instance, the autoscaler takes the on-demand type instead.

    python -m infra.spot

Ray's autoscaler asks for the type of the highest priority again and again, also where the cloud answers that it has
none. It reads its file anew whenever it looks at the cluster, so the priority of a spot type whose launch has failed is
lowered there, and put back ten minutes after its last failure (docs/decisions/0021-from-zero.md). Ends with Ray's head.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra.capacity import autoscaler
from infra.children import end_when_told
from infra.cluster import failed_launches, ray_process
from infra.errors import UserError, run

SPOT_AGAIN_S = 600.0
_LOOK_EVERY_S = 2.0
_RAY_STARTS_WITHIN_S = 180.0


@dataclass(kw_only=True)
class Spot:
    """The priorities of an autoscaler's file."""

    file: Path
    again_s: float = SPOT_AGAIN_S
    _failed: dict[str, float] = field(default_factory=dict)  # spot type -> when a launch of it failed last

    def __post_init__(self) -> None:
        types = self._read()["available_node_types"]
        self._usual = {name: int(kind.get("priority", 0)) for name, kind in types.items()}
        self._spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}

    def hear(self, failures: Mapping[str, float], now: float) -> list[str]:
        """Launches that have failed by now, as (type: Unix time); which types changed, as lines for a log."""
        for name in failures.keys() & self._spot:
            self._failed[name] = max(failures[name], self._failed.get(name, 0.0))
        lately = {name for name, at in self._failed.items() if now - at < self.again_s}
        return self._set(
            {name: min(self._usual.values()) - 1 if name in lately else self._usual[name] for name in self._spot}
        )

    def restore(self) -> None:
        """The file as it was."""
        self._set({name: self._usual[name] for name in self._spot})

    def _set(self, priorities: Mapping[str, int]) -> list[str]:
        config = self._read()
        types = config["available_node_types"]
        there = {name: types[name].get("priority", 0) for name in priorities.keys() & types.keys()}
        changed = {name: priorities[name] for name, priority in there.items() if priority != priorities[name]}
        for name, to in changed.items():
            types[name]["priority"] = to
        if changed:
            new = self.file.with_name(f"{self.file.name}.new")
            new.touch(mode=0o600)
            new.write_text(json.dumps(config))
            new.replace(self.file)
        return [f"{name} {'again' if to == self._usual[name] else 'is not to be had'}" for name, to in changed.items()]

    def _read(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(self.file.read_text())
        return config


def main() -> None:
    """Look until Ray's head, or this process, is stopped."""
    parser = argparse.ArgumentParser(prog="python -m infra.spot", description="On demand where there is no spot.")
    parser.add_argument("--again", type=float, default=SPOT_AGAIN_S, metavar="S", help="until spot is tried once more")
    arguments = parser.parse_args()
    end_when_told()
    deadline = time.monotonic() + _RAY_STARTS_WITHIN_S
    while (found := autoscaler()) is None:
        if time.monotonic() > deadline:
            raise UserError("no autoscaler of Ray with a file of its own runs on this machine")
        time.sleep(_LOOK_EVERY_S)
    gcs, file = found
    spot, head = Spot(file=file, again_s=arguments.again), ray_process("gcs_server")
    try:
        while ray_process("gcs_server") == head:
            for line in spot.hear(failed_launches(gcs), time.time()):
                sys.stdout.write(f"{time.strftime('%F %T')} {line}\n")
                sys.stdout.flush()
            time.sleep(_LOOK_EVERY_S)
    finally:
        spot.restore()


if __name__ == "__main__":
    run(main)
