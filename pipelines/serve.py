"""Serve a registered model over HTTP: `python pipelines/serve.py [--model models:/NAME@champion] [--port 8000]`.

The command answers at `/invocations` until it is stopped, and batches concurrent requests. It follows the alias: a new
champion takes over, and no request is lost. docs/serving.md describes the requests and responses.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

from infra.errors import UserError
from infra.registry.versions import CHAMPION
from pipelines import cli
from pipelines.serving.server import ServeRequest, serve


def main() -> None:
    arguments = _parser().parse_args()
    _check(arguments)
    serve(
        ServeRequest(
            model=arguments.model,
            home=arguments.home,
            host=arguments.host,
            port=arguments.port,
            replicas=arguments.replicas,
            cpus=arguments.cpus,
            batch_size=arguments.batch_size or 0,
            batch_wait_s=arguments.batch_wait_ms / 1000,
            poll_s=arguments.poll_s,
            use_gpu=cli.use_gpu(arguments),
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serve a registered model over HTTP with Ray Serve.")
    text = f"models:/NAME@{CHAMPION} or models:/NAME/VERSION (default: the champion, if there is only one model)"
    parser.add_argument("--model", metavar="URI", help=text)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--replicas", type=int, default=1, help="copies of the model (default: 1)")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each replica (default: 1)")
    text = "maximum number of images in one forward pass (default: 32 on CPUs, 64 on a GPU)"
    parser.add_argument("--batch-size", type=int, metavar="N", help=text)
    text = "milliseconds that an image waits for others (default: 5)"
    parser.add_argument("--batch-wait-ms", type=float, default=5, metavar="MS", help=text)
    text = "seconds between two checks of the alias (default: 10)"
    parser.add_argument("--poll-s", type=float, default=10, metavar="S", help=text)
    cli.add_use_gpu(parser)
    cli.add_home(parser)
    return parser


def _check(arguments: argparse.Namespace) -> None:
    for name in ("replicas", "cpus", "batch_size"):
        if (given := getattr(arguments, name)) is not None and given < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {given}")
    if arguments.batch_wait_ms < 0 or arguments.poll_s <= 0:
        raise UserError("--batch-wait-ms must not be negative, --poll-s must be above 0")


if __name__ == "__main__":
    cli.run(main, "interrupted")
