"""An S3 server at an address of the network: `python -m tests.cluster.bucket ADDRESS:PORT BUCKET`.

It stands for AWS's: the bucket is not on the head's disk. Its secret key is in the environment.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

from infra.head import forwarded
from infra.s3_server import serve_s3
from infra.subprocesses import exit_on_sigterm


def main(address: str, bucket: str) -> None:
    host, port = address.rsplit(":", 1)
    with serve_s3(Path.home() / "objects", bucket=bucket, secret_key=os.environ["AWS_SECRET_ACCESS_KEY"]) as server:
        inner = urlsplit(server.endpoint)
        assert inner.hostname and inner.port
        with forwarded((host, int(port)), (inner.hostname, inner.port)):
            while True:
                signal.pause()


if __name__ == "__main__":
    exit_on_sigterm()
    main(*sys.argv[1:])
