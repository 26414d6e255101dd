"""A node that is about to be taken away says so to Ray: `python -m infra.notice [--spot] [--seconds 25]` on that node.

It waits for a notice: SIGTERM, from whoever is going to take the node away, or, with --spot, what EC2's metadata
service announces two minutes ahead. Then it drains the node with that deadline: no new work comes to it, and Train
tells its workers, which commit a checkpoint and go on elsewhere. With --now it does so at once, for a preStop hook. A
machine's own `shutdown` is no notice: it ends Ray in the same moment. A node that is drained ends its raylet when its
last work has left it, so --now returns then, or when the time is over.

It also tidies up: `ray down` stops Ray on the head only, and a node that has lost its head ends within a minute or so
but for some of its helpers, which this stops before it ends itself.
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
_UNKNOWN_S = 100.0  # what is left of EC2's two minutes if it does not say
_DRAIN_TRIES = 3
_DRAINED_EVERY_S = 0.5
_GONE_S = 15.0  # without a node: it is not being started again


def main() -> None:
    """Wait for a notice and pass it on."""
    parser = argparse.ArgumentParser(prog="python -m infra.notice", description="Tell Ray that this node goes away.")
    parser.add_argument("--spot", action="store_true", help="also look for EC2's notice")
    parser.add_argument("--now", action="store_true", help="drain at once; return when the node is empty")
    parser.add_argument("--seconds", type=float, default=25.0, help="from SIGTERM to the end (default: 25)")
    parser.add_argument("--metadata", default=_METADATA, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    node = OwnNode()  # now, since importing Ray takes seconds that a notice may not leave
    if arguments.now:
        _drain_now(node, arguments.seconds, told)
        return
    seconds, own, seen = arguments.seconds, ray_process("raylet"), time.monotonic()
    while not told.wait(_LOOK_EVERY_S):
        if arguments.spot and (left := spot_seconds(arguments.metadata)) is not None:
            seconds = left
            break
        present = ray_process("raylet")
        if present == own:
            seen = time.monotonic()
        elif present is not None:
            return  # Ray was started anew, and somebody else watches over it
        elif time.monotonic() - seen > _GONE_S:
            subprocess.run([str(Path(sys.executable).with_name("ray")), "stop"], check=False)
            return
    drain(node, seconds)


def _drain_now(node: OwnNode, seconds: float, told: threading.Event) -> None:
    """Drain the node; return when its raylet has ended, after `seconds`, or at a signal."""
    raylet, end = ray_process("raylet"), time.monotonic() + seconds
    drain(node, seconds)
    while time.monotonic() < end and not told.wait(_DRAINED_EVERY_S):
        if ray_process("raylet") != raylet:
            return


def spot_seconds(metadata: str) -> float | None:
    """Seconds until EC2 takes this instance away, or None while it has not said that it will.

    A service that answers with an error is no notice either: it is told once, and asked again at the next look.
    """
    try:
        token = _ask(f"{metadata}/api/token", method="PUT", **{"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)})
        action = _ask(f"{metadata}/meta-data/spot/instance-action", **{"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            _tell(f"EC2's metadata service answers {error.code} {error.reason}: no notice is seen while it does")
        return None
    except OSError:
        return None  # asked again in a moment
    try:
        end = datetime.strptime(json.loads(action)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (ValueError, KeyError, TypeError):
        return _UNKNOWN_S
    return max(0.0, (end - datetime.now(UTC)).total_seconds())


def drain(node: OwnNode, seconds: float) -> None:
    """Tell Ray's head, which may need to be asked again."""
    for _ in range(_DRAIN_TRIES):
        if node.drain(seconds):
            return
        time.sleep(1.0)
    sys.exit("error: Ray's head took no notice of this node's end")


@cache
def _tell(message: str) -> None:
    """Into the log, once."""
    sys.stderr.write(f"{message}\n")


def _ask(url: str, method: str = "GET", **headers: str) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=_METADATA_TIMEOUT_S) as answer:
        return str(answer.read().decode())


if __name__ == "__main__":
    run(main)
