"""Whole runs with data and checkpoints on a real S3 server that fails: they stall, and go on, and lose nothing.

Scenarios 9 and 11 to 13: each run is a command in a process of its own, and a proxy stands before the server.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.s3_proxy import Faults, Proxy, serve_proxy
from infra.s3_server import S3Server, serve_s3
from infra.storage import Store, open_store
from infra.tracking.client import Tracking, connect
from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.data.order.ledger import Ledger
from tests.pipelines.conftest import SIZE, Coloured

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
ROWS = 30
RECIPE = f"""
[model]
name = "resnet20"
[data]
uri = "s3://resnet-ray/data"
image_size = {SIZE}
eval_resize = {SIZE}
[optim]
global_batch_size = 10
[schedule]
length = 20
shape = "cosine"
[run]
home = "s3://resnet-ray/runs"
num_workers = 0
eval_every_epochs = 5
"""


@dataclass(kw_only=True)
class Site:
    """The server, a proxy before it, and a folder to give commands in."""

    folder: Path
    server: S3Server
    proxy: Proxy
    environment: dict[str, str]
    store: Store
    servers: ExitStack = field(default_factory=ExitStack)

    def start(self, name: str, *settings: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "pipelines/train.py"), "demo.toml", "--set", f"run.name={name}"]
        for setting in settings:
            command += ["--set", setting]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def train(self, name: str, *settings: str) -> tuple[int, str]:
        process = self.start(name, *settings)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.store.sub(f"runs/{name}"))

    def kill_server(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)

    def start_server(self) -> None:
        again = serve_s3(self.folder / "s3", secret_key=self.server.secret_key)
        self.server = self.servers.enter_context(again)
        self.proxy.target = self.server.endpoint


@pytest.fixture(scope="module")
def site(colours: Coloured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    database = f"sqlite:///{folder / 'mlflow.db'}"
    connect(Tracking(uri=database))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    (folder / "demo.toml").write_text(RECIPE)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as here:
        try:
            server = stack.enter_context(serve_s3(folder / "s3"))
        except UserError as error:
            pytest.skip(str(error))
        proxy = stack.enter_context(serve_proxy(server.endpoint))
        reach = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
        for key, value in reach.items():
            here.setenv(key, value)
        store = open_store("s3://resnet-ray")
        for path, _ in colours.store.list():
            store.write(f"data/{path}", colours.store.read(path))
        own = {
            "HOME": str(folder),
            "MLFLOW_TRACKING_URI": database,
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(folder / "artifacts"),
            "OMP_NUM_THREADS": "1",
        }
        environment = {**kept, **reach, **own}
        yield Site(folder=folder, server=server, proxy=proxy, environment=environment, store=store, servers=stack)


@pytest.fixture(autouse=True)
def good_weather(site: Site) -> Iterator[None]:
    yield
    site.proxy.faults = Faults()


def newest(folder: RunFolder) -> Checkpoint:
    checkpoint = folder.newest(pytest.fail)
    assert checkpoint is not None
    return checkpoint


def check_ledger(checkpoint: Checkpoint, epochs: int = 20) -> None:
    counts = Ledger.from_arrays(checkpoint.ledger).report()
    assert {epoch: (count.once, count.never) for epoch, count in counts.items()} == {
        epoch: (ROWS, 0) for epoch in range(epochs)
    }


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_bad_day_of_the_storage_costs_time_and_nothing_else(site: Site) -> None:
    """503 SlowDown, resets, short bodies, error pages with 200, flipped bits: all repeated, and counted.

    A shard that the manifest does not name lies there, too: it is told of, and not read.
    """
    site.store.write("data/train-00009.parquet", site.store.read("data/train-00001.parquet"))
    site.proxy.seen.clear()
    site.proxy.faults = Faults(slow_down=0.1, reset=0.04, short=0.04, error_page=0.04, flip=0.04)
    status, output = site.train("bad-day")
    assert status == 0, output
    site.proxy.faults = Faults()
    assert site.proxy.seen["slow_down"] and len(site.proxy.seen) >= 4  # each fault alone: tests/infra/test_s3_proxy.py
    checkpoint = newest(site.run("bad-day"))
    assert checkpoint.step == 60
    check_ledger(checkpoint)
    repeated = round(sum(record.metrics.get("data/retries", 0) for record in checkpoint.records))
    assert repeated > 0
    assert f"storage     {repeated} requests had to be repeated" in output
    assert "ignored: train-00009.parquet in s3://resnet-ray/data" in output.replace("\n", " ")
    assert "falling back to the checkpoint before" not in output and "worker 0 failed" not in output


def test_a_server_that_is_killed_and_comes_back_is_waited_for(site: Site) -> None:
    """In mid-epoch and in mid-checkpoint: every step is one. Nothing fails, nothing is done twice."""
    process = site.start("outage", "run.checkpoint_every_steps=1")
    folder = site.run("outage")
    wait_for(lambda: bool(folder.steps()) and folder.steps()[-1] >= 5, process)
    site.kill_server()
    time.sleep(6)
    assert process.poll() is None
    site.start_server()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "failed" not in output
    checkpoint = newest(folder)
    assert checkpoint.step == 60
    check_ledger(checkpoint)
    assert [record.step for record in checkpoint.records if "test/accuracy" in record.metrics] == [15, 30, 45, 60]


def test_a_flipped_bit_in_the_newest_checkpoint_falls_back_to_the_one_before(site: Site) -> None:
    status, output = site.train("flipped", "schedule.length=3", "run.eval_every_epochs=1")
    assert status == 0, output
    folder = site.run("flipped")
    steps = folder.steps()
    path = f"checkpoints/step-{steps[-1]:08d}/ledger.safetensors"
    data = bytearray(folder.store.read(path))
    data[len(data) // 2] ^= 1
    folder.store.write(path, bytes(data))
    folder.store.delete("finished.json")
    status, output = site.train("flipped", "schedule.length=3", "run.eval_every_epochs=1")
    assert status == 0, output
    told = f"{folder.store.description}/{path} is not what was saved: its sha256 disagrees"
    assert told.split(" at ")[0] in output.replace("\n", "")
    check_ledger(newest(folder), epochs=3)


def test_a_missing_shard_is_named_at_once(site: Site) -> None:
    shard = site.store.read("data/train-00001.parquet")
    site.store.delete("data/train-00001.parquet")
    status, output = site.train("missing")
    site.store.write("data/train-00001.parquet", shard)
    line = f"error: shard train-00001.parquet is missing in s3://resnet-ray/data at {site.proxy.endpoint}: restore it"
    assert (status, line in output) == (2, True), output
