"""serve.py as users start it: several replicas, too many requests, what it counts, and how it ends."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.conftest import SIZE
from tests.pipelines.registered import Registry
from tests.pipelines.serving.requests_to_refuse import npy_of
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
IMAGES = npy_of(np.random.default_rng(0).integers(0, 256, (32, SIZE, SIZE, 3), dtype=np.uint8))
CLIENTS = 256


def ask(port: int, body: bytes = IMAGES, kind: str = "application/x-npy") -> int:
    """The status of an answer that came whole."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/invocations", body, {"Content-Type": kind})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_replicas_overload_metrics_and_the_end(registry: Registry, tmp_path: Path, free_port: int) -> None:
    registry.champion_is(registry.first)
    command = [sys.executable, str(ROOT / "pipelines/serve.py"), "--model", registry.uri, "--home", str(registry.home)]
    command += ["--port", str(free_port), "--replicas", "2", "--batch-size", "1"]
    private = ("RAY_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    with (tmp_path / "stderr").open("wb") as stderr, ThreadPoolExecutor(CLIENTS) as clients:
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert server.stdout
            said = [server.stdout.readline() for _ in range(2)]
            assert said[0].startswith("serving models:/served/1 at "), (tmp_path / "stderr").read_text()
            assert ask(free_port, b"hello", "image/png") == 422

            statuses = Counter(clients.map(lambda _: ask(free_port), range(CLIENTS)))
            assert set(statuses) == {200, 503}
            assert statuses[200] >= 128  # what may be under way in both, at least

            address = said[1].split()[-1]
            wait_until(lambda: counted(address, "ray_resnet_ray_images_total") == 32 * statuses[200])
            wait_until(lambda: counted(address, "ray_resnet_ray_refused_requests_total") == 1 + statuses[503])
            assert counted(address, "ray_resnet_ray_request_seconds_count") == statuses[200]
            wait_until(lambda: len(replicas(address)) == 2)

            under_way = [clients.submit(ask, free_port) for _ in range(24)]
            wait_until(lambda: any(map(Future.done, under_way)))
            server.send_signal(signal.SIGTERM)
            assert Counter(each.result() for each in under_way) == {200: 24}
            assert server.wait(60) == 0
            assert "stopping: requests that are under way get their answers" in server.stdout.read()
            with pytest.raises(OSError):
                ask(free_port)
        finally:
            server.kill()


def lines(address: str, metric: str) -> list[str]:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return [line for line in answer.read().decode().splitlines() if line.startswith(f"{metric}{{")]


def counted(address: str, metric: str) -> float:
    """Over all replicas."""
    return sum(float(line.rpartition(" ")[2]) for line in lines(address, metric))


def replicas(address: str) -> set[str]:
    """Those that have said which version they serve."""
    return {line.partition('replica="')[2].partition('"')[0] for line in lines(address, "ray_resnet_ray_model_version")}
