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
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra.capacity import autoscaler
from infra.children import end_when_told
from infra.cluster import failed_launches, ray_process
from infra.errors import UserError, run
from infra.launches import recent_refusals

SPOT_AGAIN_S = 600.0
_LOOK_EVERY_S = 2.0
_RAY_STARTS_WITHIN_S = 180.0


@dataclass(kw_only=True)
class Spot:
    """The priorities of an autoscaler's file, which somebody else may write anew at any time."""

    file: Path
    again_s: float = SPOT_AGAIN_S
    _failed: dict[str, float] = field(default_factory=dict)  # spot type -> when a launch of it failed last
    _lowered: dict[str, tuple[int, int]] = field(default_factory=dict)  # spot type -> priority as it was, and as set

    def hear(self, failures: Mapping[str, float], now: float) -> list[str]:
        """Launches that have failed by now, as (type: Unix time); which types changed, as lines for a log."""
        for name, at in failures.items():
            self._failed[name] = max(at, self._failed.get(name, 0.0))
        return self._set({name for name, at in self._failed.items() if now - at < self.again_s})

    def restore(self) -> None:
        """The file as it was."""
        self._set(set())

    def _set(self, last: Set[str]) -> list[str]:
        """Have these types come after all others, where they are spot, and the rest be as they were."""
        config = self._read()
        types, told = config["available_node_types"], []
        lowest = min(int(kind.get("priority", 0)) for kind in types.values())
        for name, (was, to) in list(self._lowered.items()):
            if name not in types or types[name].get("priority", 0) != to:  # written anew, which counts
                del self._lowered[name]
            elif name not in last:
                types[name]["priority"] = was
                del self._lowered[name]
                told.append(f"{name} again")
        for name in sorted((last & types.keys()) - self._lowered.keys()):
            if "InstanceMarketOptions" in types[name]["node_config"]:
                self._lowered[name] = int(types[name].get("priority", 0)), lowest - 1
                types[name]["priority"] = lowest - 1
                told.append(f"{name} is not to be had")
        if told:
            new = self.file.with_name(f"{self.file.name}.new")
            new.touch(mode=0o600)
            new.write_text(json.dumps(config))
            new.replace(self.file)
        return told

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
            if told := spot.hear(failed_launches(gcs), time.time()):
                for line in (*told, *recent_refusals()):
                    sys.stdout.write(f"{time.strftime('%F %T')} {line}\n")
                sys.stdout.flush()
            time.sleep(_LOOK_EVERY_S)
    finally:
        spot.restore()


if __name__ == "__main__":
    run(main)
