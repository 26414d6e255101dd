"""Make the autoscaler use the on-demand type while EC2 has no spot instance; runs on the head of a cluster on AWS.

    python -m infra.spot

Ray's autoscaler requests the type with the highest priority again and again, even if the cloud has none of it. The
autoscaler reads its file each time it looks at the cluster. So this program lowers the priority of a spot type in that
file when a launch fails. Ten minutes after the last failure, it restores the priority
(docs/decisions/0021-from-zero.md). The program ends with Ray's head.
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
from infra.cluster import failed_launches, ray_process
from infra.errors import UserError, run
from infra.launch_failures import recent_launch_failures
from infra.subprocesses import exit_on_sigterm

SPOT_AGAIN_S = 600.0
_LOOK_EVERY_S = 2.0
_RAY_STARTS_WITHIN_S = 180.0


@dataclass(kw_only=True)
class Spot:
    """The priorities in an autoscaler's file, which another process may rewrite at any time."""

    file: Path
    again_s: float = SPOT_AGAIN_S
    _failed: dict[str, float] = field(default_factory=dict)  # spot type -> time of its last failed launch
    _lowered: dict[str, tuple[int, int]] = field(default_factory=dict)  # spot type -> original, lowered priority

    def hear(self, failures: Mapping[str, float], now: float) -> list[str]:
        """Update the priorities from failed launches (type -> Unix time); return the changes as log lines."""
        for name, at in failures.items():
            self._failed[name] = max(at, self._failed.get(name, 0.0))
        return self._set({name for name, at in self._failed.items() if now - at < self.again_s})

    def restore(self) -> None:
        """Restore the original priorities in the file."""
        self._set(set())

    def _set(self, last: Set[str]) -> list[str]:
        """Put these spot types after all other types, and restore the rest; return the changes as log lines."""
        config = self._read()
        types, changes = config["available_node_types"], []
        lowest = min(int(kind.get("priority", 0)) for kind in types.values())
        for name, (was, to) in list(self._lowered.items()):
            if name not in types or types[name].get("priority", 0) != to:  # the file was rewritten: its value stays
                del self._lowered[name]
            elif name not in last:
                types[name]["priority"] = was
                del self._lowered[name]
                changes.append(f"{name} is tried again")
        for name in sorted((last & types.keys()) - self._lowered.keys()):
            if "InstanceMarketOptions" in types[name]["node_config"]:
                self._lowered[name] = int(types[name].get("priority", 0)), lowest - 1
                types[name]["priority"] = lowest - 1
                changes.append(f"{name} is unavailable")
        if changes:
            new = self.file.with_name(f"{self.file.name}.new")
            new.touch(mode=0o600)
            new.write_text(json.dumps(config))
            new.replace(self.file)
        return changes

    def _read(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(self.file.read_text())
        return config


def main() -> None:
    """Watch for failed launches until Ray's head or this process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m infra.spot", description="On demand while spot is unavailable.")
    parser.add_argument("--again", type=float, default=SPOT_AGAIN_S, metavar="S", help="until spot is tried again")
    arguments = parser.parse_args()
    exit_on_sigterm()
    deadline = time.monotonic() + _RAY_STARTS_WITHIN_S
    while (found := autoscaler()) is None:
        if time.monotonic() > deadline:
            raise UserError("no Ray autoscaler with a configuration file runs here: run this on the head of a cluster")
        time.sleep(_LOOK_EVERY_S)
    gcs, file = found
    spot, head = Spot(file=file, again_s=arguments.again), ray_process("gcs_server")
    try:
        while ray_process("gcs_server") == head:
            if changes := spot.hear(failed_launches(gcs), time.time()):
                for line in (*changes, *recent_launch_failures()):
                    sys.stdout.write(f"{time.strftime('%F %T')} {line}\n")
                sys.stdout.flush()
            time.sleep(_LOOK_EVERY_S)
    finally:
        spot.restore()


if __name__ == "__main__":
    run(main)
