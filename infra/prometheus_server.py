"""Prometheus on loopback: it scrapes Ray's metrics and those of runs from every node of this machine's Ray cluster.

    python -m infra.prometheus_server FOLDER [--port N] [--targets FILE]

Ray's head keeps a list of its nodes' exporters. Prometheus reads the list again when it changes, so it finds new nodes
and a Ray that starts later. The page /consoles/dashboards.html draws infra/dashboards/ without Grafana.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError, run
from infra.subprocesses import (
    HOST,
    Child,
    answers,
    exit_on_sigterm,
    make_folder,
    pick_port,
    running,
    serve_until_sigterm,
)

_USUAL_PORT = 9090
_READY_TIMEOUT_S = 60.0
_SCRAPE_EVERY_S = 5
_KEPT_DAYS = 15
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True, slots=True)
class PrometheusServer:
    """A running server."""

    url: str  # http://127.0.0.1:PORT
    pid: int


def ray_targets() -> Path:
    """Return the path of the exporter list of this machine's newest Ray; the file may not exist yet."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "prom_metrics_service_discovery.json")


def installed() -> bool:
    """Return whether Prometheus is installed on this machine."""
    return shutil.which("prometheus") is not None


@contextmanager
def serve_prometheus(
    folder: str | Path, *, port: int | None = None, targets: Path | None = None
) -> Iterator[PrometheusServer]:
    """Scrape and serve until the block ends; ``targets`` is an exporter list, None = ``ray_targets()``.

    Raises:
        UserError: Prometheus is not installed, the port is taken, or the server does not start.
    """
    if not installed():
        raise UserError("`prometheus` is not installed: install it (on Debian: apt-get install prometheus)")
    folder = make_folder(folder)
    consoles = folder / "consoles"
    consoles.mkdir(parents=True, exist_ok=True)
    _write_configuration(folder / "prometheus.yml", targets or ray_targets())
    (consoles / "dashboards.html").write_text(page())
    port = pick_port(port, _USUAL_PORT)
    url = f"http://{HOST}:{port}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--storage.tsdb.retention.time={_KEPT_DAYS}d",
        f"--web.listen-address={HOST}:{port}",
        f"--web.external-url={url}",
        f"--web.console.templates={consoles}",
        f"--web.console.libraries={consoles}",
        "--log.level=warn",
    ]
    child = Child(
        name="Prometheus",
        command=command,
        environment={},
        log=folder / "prometheus.log",
        ready=lambda: answers(f"{url}/-/ready"),
        timeout_s=_READY_TIMEOUT_S,
    )
    with running(child) as pid:
        yield PrometheusServer(url=url, pid=pid)


def _write_configuration(file: Path, targets: Path) -> None:
    """Write the configuration as JSON, which is valid YAML."""
    scrape = {
        "job_name": "ray",
        "file_sd_configs": [{"files": [str(targets)], "refresh_interval": f"{_SCRAPE_EVERY_S}s"}],
    }
    every = {"scrape_interval": f"{_SCRAPE_EVERY_S}s", "scrape_timeout": f"{_SCRAPE_EVERY_S}s"}
    file.write_text(json.dumps({"global": every, "scrape_configs": [scrape]}, indent=1))


def page() -> str:
    """Return the page that draws the dashboards; Prometheus reads it as a template, so "{{" is escaped."""
    boards = [json.loads(file.read_text()) for file in sorted((_HERE / "dashboards").glob("*.json"), reverse=True)]
    text = json.dumps(boards).replace("{{", r"{\u007b").replace("</", r"<\/")
    return (_HERE / "dashboards" / "page.html").read_text().replace("DASHBOARDS", text)


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m infra.prometheus_server", description="Prometheus on loopback.")
    parser.add_argument("folder", type=Path, help="where the series are kept")
    parser.add_argument("--port", type=int, help=f"default: {_USUAL_PORT}, or a free one above it")
    parser.add_argument("--targets", type=Path, metavar="FILE", help="Ray's list of exporters, if not in /tmp/ray")
    arguments = parser.parse_args()
    exit_on_sigterm()
    with serve_prometheus(arguments.folder, port=arguments.port, targets=arguments.targets) as server:
        serve_until_sigterm(f"{server.url}/consoles/dashboards.html\n# served")


if __name__ == "__main__":
    run(main)
