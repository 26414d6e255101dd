"""Open object storage by URI, and the same place for libraries that use pyarrow."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Literal, assert_never
from urllib.parse import unquote, urlsplit

from infra.errors import UserError
from infra.storage.local import LocalStore
from infra.storage.store import Store, inside

if TYPE_CHECKING:
    import pyarrow.fs

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Parameters in S3 URIs of other libraries, some of them secret. Any other "?" or "#" is part of a key.
_PARAMETERS = re.compile(r"\?(.*&)?(access_key|secret_key|session_token|endpoint_override|endpoint_url|region|scheme)=")


def open_store(uri: str) -> Store:
    """Return the store at a local folder (absolute, relative, or ``file://``) or at ``s3://bucket/prefix``.

    The storage is not accessed yet: ``check_access`` checks whether it can be used.

    Raises:
        UserError: the URI has neither form.
    """
    scheme, path = _parse(uri)
    match scheme:
        case "file":
            return LocalStore(uri=path)
        case "s3":
            from infra.storage.s3 import S3Store

            return S3Store(uri=path)
        case _:
            assert_never(scheme)


def pyarrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the same place for libraries that use pyarrow (Ray Train's ``storage_filesystem`` and ``storage_path``).

    The file system carries no credentials: each process that receives it finds credentials in its environment.
    """
    scheme, path = _parse(uri)
    import pyarrow.fs

    match scheme:
        case "file":
            return pyarrow.fs.LocalFileSystem(), path
        case "s3":
            return _arrow_s3(), path.removeprefix("s3://")
        case _:
            assert_never(scheme)


def environment_of_s3() -> dict[str, str]:
    """Return variables that pyarrow needs in all processes if the S3 endpoint has a path, as behind a gateway.

    By default, pyarrow sends uploads in chunks with a trailing checksum, which gateways may not understand. boto3 does
    not.
    """
    from infra.storage.s3 import configured_endpoint

    if urlsplit(configured_endpoint()).path.strip("/"):
        return {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    return {}


def _arrow_s3() -> pyarrow.fs.S3FileSystem:
    """Return S3 for pyarrow, from the same environment as boto3; pyarrow's AWS SDK finds the credentials itself."""
    import pyarrow.fs

    from infra.storage.s3 import configured_endpoint

    endpoint = urlsplit(configured_endpoint())
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return pyarrow.fs.S3FileSystem(
        endpoint_override=f"{endpoint.netloc}{endpoint.path.rstrip('/')}" or None,
        scheme=endpoint.scheme or "https",
        region=region or ("us-east-1" if endpoint.netloc else None),
        connect_timeout=5,
        request_timeout=60,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=10),
    )


def _parse(uri: str) -> tuple[Literal["file", "s3"], str]:
    """Return ("file", absolute folder) or ("s3", the URI without a trailing slash)."""
    if not uri:
        raise UserError("the storage location is empty: give a local folder or s3://bucket/prefix")
    if _CONTROL.search(uri):
        raise UserError(f"the storage location {uri!r} has a control character in it: give one without")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "file", _local(uri)
    if scheme == "file":
        return "file", _local_of_uri(uri, rest)
    if scheme != "s3":
        raise UserError(f"storage location {scheme}://… is not supported: give a local folder or s3://bucket/prefix")
    bucket, _, key = rest.partition("/")  # a key may contain "#", "?" and "%"
    if not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket) or _PARAMETERS.search(key):
        raise UserError("an S3 location reads s3://bucket/prefix; endpoint and credentials belong in the environment")
    return "s3", f"s3://{bucket}/{inside(key.strip('/'))}".rstrip("/")


def _local(path: str) -> str:
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(
            f"{path}: no home folder is known for {path.partition('/')[0]}: give ./{path} or another folder"
        )
    return os.path.abspath(expanded)


def _local_of_uri(uri: str, rest: str) -> str:
    host, _, path = rest.partition("/")
    if host not in ("", "localhost") or "?" in path or "#" in path:
        form = "file:///folder, on this machine, with %3F for ? and %23 for #"
        raise UserError(f"a file URI reads {form}: give the folder itself instead")
    if _CONTROL.search(path := unquote(path)):
        raise UserError(f"the storage location {uri!r} has a control character in it: give one without")
    return os.path.abspath(f"/{path}")
