"""Report the preemption of a node to Ray: `python -m infra.notice [--spot] [--seconds 25]` on that node.

The program waits for a notice: SIGTERM, or, with --spot, the announcement of EC2's metadata service two minutes ahead.
Then it drains the node with that deadline. Ray places no new work on the node, and Train notifies its workers, which
commit a checkpoint and resume on other nodes. A machine's own `shutdown` is no notice: it ends Ray at the same moment.

With --now, for a preStop hook, the program drains the node at once. A drained node ends its raylet when its last work
has ended. So --now returns at that moment, or when the time is over.

The program also cleans up. `ray down` stops Ray on the head only. A node that has lost its head ends within about a
minute, except for some helper processes, which this program stops before it ends.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path

from infra.cluster import OwnNode, ray_process
from infra.errors import run

_METADATA = "http://169.254.169.254/latest"
_METADATA_TIMEOUT_S = 2.0
_TOKEN_S = 21600
_LOOK_EVERY_S = 5.0
_UNKNOWN_S = 100.0  # the rest of EC2's two minutes if the notice has no valid time
_DRAIN_TRIES = 3
_DRAINED_EVERY_S = 0.5
_GONE_S = 15.0  # after this time without a raylet, Ray is not being restarted


def main() -> None:
    """Wait for a notice and pass it on to Ray."""
    parser = argparse.ArgumentParser(prog="python -m infra.notice", description="Tell Ray that this node is preempted.")
    parser.add_argument("--spot", action="store_true", help="also watch for EC2's spot notice")
    parser.add_argument("--now", action="store_true", help="drain at once; return when the node is empty")
    parser.add_argument("--seconds", type=float, default=25.0, help="from SIGTERM to the end of the node (default: 25)")
    parser.add_argument("--metadata", default=_METADATA, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    notified = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: notified.set())
    node = OwnNode()  # before the notice, since importing Ray takes seconds
    if arguments.now:
        _drain_now(node, arguments.seconds, notified)
        return
    seconds, own, seen = arguments.seconds, ray_process("raylet"), time.monotonic()
    while not notified.wait(_LOOK_EVERY_S):
        if arguments.spot and (left := spot_seconds(arguments.metadata)) is not None:
            seconds = left
            break
        present = ray_process("raylet")
        if present == own:
            seen = time.monotonic()
        elif present is not None:
            return  # Ray was restarted, with another process of this program
        elif time.monotonic() - seen > _GONE_S:
            subprocess.run([str(Path(sys.executable).with_name("ray")), "stop"], check=False)
            return
    drain(node, seconds)


def _drain_now(node: OwnNode, seconds: float, notified: threading.Event) -> None:
    """Drain the node; return when its raylet has ended, after `seconds`, or at a signal."""
    raylet, end = ray_process("raylet"), time.monotonic() + seconds
    drain(node, seconds)
    while time.monotonic() < end and not notified.wait(_DRAINED_EVERY_S):
        if ray_process("raylet") != raylet:
            return


def spot_seconds(metadata: str) -> float | None:
    """Return the seconds until EC2 takes this instance away, or None without a notice.

    An error from the metadata service is no notice: the error is logged once, and the next look asks again.
    """
    try:
        token = _ask(f"{metadata}/api/token", method="PUT", **{"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)})
        action = _ask(f"{metadata}/meta-data/spot/instance-action", **{"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            _log_once(f"EC2's metadata service answers {error.code} {error.reason}: spot notices are missed meanwhile")
        return None
    except OSError:
        return None  # asked again in a moment
    try:
        end = datetime.strptime(json.loads(action)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (ValueError, KeyError, TypeError):
        return _UNKNOWN_S
    return max(0.0, (end - datetime.now(UTC)).total_seconds())


def drain(node: OwnNode, seconds: float) -> None:
    """Drain the node; ask Ray's head again if it does not agree."""
    for _ in range(_DRAIN_TRIES):
        if node.drain(seconds):
            return
        time.sleep(1.0)
    sys.exit("error: Ray's head did not accept the drain of this node")


@cache
def _log_once(message: str) -> None:
    """Write a message to the log once."""
    sys.stderr.write(f"{message}\n")


def _ask(url: str, method: str = "GET", **headers: str) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=_METADATA_TIMEOUT_S) as answer:
        return str(answer.read().decode())


if __name__ == "__main__":
    run(main)
