"""Test of both servers of a registered model: `python benchmarks/serving.py models:/NAME/1 models:/NAME/2`.

`mlflow models serve` and `pipelines/serve.py` run on loopback. They get real images of the data set on which the first
version was trained: JPEG and PNG files, and the model's input array, one image per request. Every answer is compared
with the model's prediction in this process. Then requests follow that the servers must refuse. Finally the alias
`benchmark` moves from the first version to the second and back while requests continue; it is removed at the end.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from benchmarks.questions import JSON, Question, asked, to_refuse
from infra.registry.versions import load
from infra.tracking.client import Tracking, connect, resolve_tracking
from pipelines import cli, serve

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "benchmark"
MLFLOW, OURS = "mlflow models serve", "pipelines/serve.py"
STARTED_WITHIN_S = 180
WATCHED_S = 3.0  # of requests before, between and after the changes of the alias


@dataclass(kw_only=True)
class Load:
    """Several clients with one connection each, which send one request after the other."""

    port: int
    default: int  # version to assume if the server does not name it
    latencies_ms: list[float] = field(default_factory=list)
    answers: Counter[tuple[int, int]] = field(default_factory=Counter)  # by status and version
    difference: float = 0.0  # largest difference between a served probability and that of the same version here
    seconds: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def failed(self) -> int:
        return sum(count for (status, _), count in self.answers.items() if status != 200)

    def run(self, questions: Iterator[Question], clients: int) -> None:
        """Send requests until there are no more, or `stop` is set."""
        lock = threading.Lock()

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            while not self.stop.is_set():
                with lock:
                    question = next(questions, None)
                if question is None:
                    return
                begun = time.perf_counter()
                status, answer = post(connection, question)
                self.latencies_ms.append(1000 * (time.perf_counter() - begun))
                version = answer.get("model", {}).get("version", self.default)
                with lock:
                    self.answers[status, version] += 1
                    if status == 200:
                        row = np.array(list(answer["predictions"][0]["probabilities"].values()))
                        self.difference = max(self.difference, np.abs(row - question.expected[version]).max())

        threads = [threading.Thread(target=ask) for _ in range(clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seconds = time.perf_counter() - started

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.latencies_ms, percent))


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a registered model in two ways, and test both.")
    parser.add_argument("versions", nargs=2, metavar="models:/NAME/N", help="two versions of one registered model")
    parser.add_argument("--home", default="runs", help="folder of MLflow's database without MLFLOW_TRACKING_URI")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="numbers of concurrent clients")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    tracking = resolve_tracking(arguments.home)
    models = [load(tracking, uri) for uri in arguments.versions]
    numbers = [model.version.number for model in models]
    name, client = models[0].version.name, connect(tracking)
    questions = dict(asked(models, arguments.requests))
    console = Console(soft_wrap=True, highlight=False, width=120)
    figures: list[dict[str, Any]] = []
    client.set_registered_model_alias(name, ALIAS, str(numbers[0]))
    try:
        for server in (MLFLOW, OURS):
            with serving(server, f"models:/{name}@{ALIAS}", tracking, arguments) as seconds:
                console.print(f"{server}: ready after {seconds:.1f} s")
                for clients, (kind, each) in itertools.product(arguments.clients, questions.items()):
                    if server == OURS or each[0].content_type == JSON:
                        figures.append({"server": server, "requests": kind, **measured(each, clients, arguments.port)})
                console.print("\n".join(refusals(server, models[0].shapes.image[0], arguments.port)), markup=False)
                if server == OURS:
                    console.print(swaps(client, name, numbers, questions["png"], arguments))
    finally:
        client.delete_registered_model_alias(name, ALIAS)
    console.print(table(figures))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


@contextmanager
def serving(server: str, uri: str, tracking: Tracking, arguments: argparse.Namespace) -> Iterator[float]:
    """Start the server as a user does; yield the seconds until it answered."""
    port = ["--port", str(arguments.port)]
    if server == MLFLOW:
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local", *port]
    else:
        command = [sys.executable, serve.__file__, "--model", uri, "--home", arguments.home, "--poll-s", "1", *port]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking.uri, "PATH": path}
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        started = time.monotonic()
        # MLflow's command starts another process: end the group of both. Our server ends Ray's processes itself.
        end, own = (os.killpg, True) if server == MLFLOW else (os.kill, False)
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=own)
        try:
            while not healthy(arguments.port):
                if process.poll() is not None or time.monotonic() - started > STARTED_WITHIN_S:
                    raise SystemExit(f"error: {server} does not answer:\n{Path(log.name).read_text()[-2000:]}")
                time.sleep(0.1)
            yield time.monotonic() - started
        finally:
            end(process.pid, signal.SIGTERM)
            process.wait(60)
            while healthy(arguments.port):
                time.sleep(0.1)


def healthy(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def post(connection: http.client.HTTPConnection, question: Question) -> tuple[int, dict[str, Any]]:
    """Send a request; return (status, answer), status 0 if there is no answer."""
    try:
        connection.request("POST", "/invocations", question.body, {"Content-Type": question.content_type})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError):
        connection.close()
        return 0, {}


def measured(questions: Sequence[Question], clients: int, port: int) -> dict[str, Any]:
    """Send each request once and return the figures; a tenth of the requests are a warm-up."""
    version = next(iter(questions[0].expected))
    Load(port=port, default=version).run(iter(questions[: len(questions) // 10]), clients)
    load_ = Load(port=port, default=version)
    load_.run(iter(questions), clients)
    return {
        "clients": clients,
        "images_per_second": len(load_.latencies_ms) / load_.seconds,
        "p50_ms": load_.percentile(50),
        "p99_ms": load_.percentile(99),
        "largest_difference": load_.difference,
        "failed": load_.failed,
    }


def refusals(server: str, side: int, port: int) -> Iterator[str]:
    """Yield a line for each request that the server must refuse: status and error."""
    for label, question in to_refuse(side):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        status, answer = post(connection, question)
        yield f"  {label}: {status} {answer.get('error' if server == OURS else 'message', '')}"


def swaps(
    client: MlflowClient, name: str, numbers: Sequence[int], questions: list[Question], arguments: argparse.Namespace
) -> str:
    """Move the alias to the second version and back while clients send requests; return what happened, as text."""
    load_ = Load(port=arguments.port, default=numbers[0])
    thread = threading.Thread(target=load_.run, args=(itertools.cycle(questions), max(arguments.clients)))
    thread.start()
    waits = []
    for number in (numbers[1], numbers[0]):
        time.sleep(WATCHED_S)
        before = load_.answers[200, number]
        client.set_registered_model_alias(name, ALIAS, str(number))
        moved = time.monotonic()
        while load_.answers[200, number] == before:
            time.sleep(0.01)
        waits.append(f"alias set to version {number}, which answered {time.monotonic() - moved:.1f} s later")
    time.sleep(WATCHED_S)
    load_.stop.set()
    thread.join()
    answered = ", ".join(f"{count:,} by version {version}" for (_, version), count in sorted(load_.answers.items()))
    return (
        f"{'; '.join(waits)}\nmeanwhile {load_.answers.total():,} requests: {answered}; {load_.failed} failed; "
        f"p50 {load_.percentile(50):.0f} ms, p99 {load_.percentile(99):.0f} ms, "
        f"longest {load_.percentile(100):.0f} ms; largest difference {load_.difference:.0e}"
    )


def table(figures: Sequence[dict[str, Any]]) -> Table:
    names = ("server", "requests", "clients", "images/s", "p50 ms", "p99 ms", "difference", "failed")
    shown = Table(*(Column(name, no_wrap=True) for name in names), box=None, pad_edge=False)
    for row in figures:
        rates = f"{row['images_per_second']:.0f}", f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}"
        difference = f"{row['largest_difference']:.0e}"
        shown.add_row(row["server"], row["requests"], str(row["clients"]), *rates, difference, str(row["failed"]))
    return shown


if __name__ == "__main__":
    cli.run(main)
