"""S3 and compatible servers, behind the interface of ``infra.storage.Store``; opened by ``open_store``.

Endpoint, region and credentials are those that boto3 finds in the environment of the calling process. botocore makes
three attempts at a request that fails (no connection, 5xx, 503 SlowDown). This module retries the rest: bodies that
break off, stall or end early, error pages with status 200, and outages of up to two minutes.
"""

from __future__ import annotations

import functools
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeVar

from infra.errors import UserError
from infra.retry import count_retry, pauses
from infra.storage.store import inside

_T = TypeVar("_T")
_Use = Literal["read", "write", "probe"]
_RETRY_FOR_S = 120.0  # after the first failure; each of our attempts is up to three of botocore's
_TIMEOUT_S: Mapping[_Use, float] = {"read": 10.0, "write": 60.0, "probe": 6.0}  # without a byte
_PART_BYTES = 16 << 20  # larger files are uploaded in parts of this size, four at a time
_TRANSIENT_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})  # 409: another conditional write was in progress
_REFUSED_STATUS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_REFUSED_CODES = frozenset({"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"})


class _ShortReadError(Exception):
    """The answer ended before the object did."""


class _ExistsError(Exception):
    """A conditional write found an object; ``retries`` counts botocore's earlier attempts."""

    def __init__(self, retries: int) -> None:
        super().__init__()
        self.retries = retries


class _BeyondEndError(Exception):
    """The range asked for starts at or after the end of the object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Store:
    """Objects under ``s3://bucket/prefix``; the process makes the client at its first use and shares it."""

    uri: str  # s3://bucket/prefix, no trailing slash

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def bucket(self) -> str:
        return self._parts[0]

    @property
    def _parts(self) -> tuple[str, str]:
        """Bucket and prefix. A URL parser would not do: "#", "?" and "%" are parts of a key."""
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        return bucket, prefix

    @property
    def description(self) -> str:
        return f"{self.uri} at {_endpoint()}"

    def read(self, path: str, *, start: int = 0, length: int | None = None) -> bytes:
        if length == 0 and self.exists(path):
            return b""
        span = {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"} if start or length else {}

        def fetch() -> bytes:
            answer = _client("read").get_object(**self._object(path), **span)
            data: bytes = answer["Body"].read()
            if not answer.get("ETag"):
                raise _ShortReadError("an answer without an ETag is no object")
            if len(data) != _promised_bytes(answer, start, length):
                raise _ShortReadError(f"{len(data)} bytes of {self.uri}/{path}")
            return data

        try:
            return self._retry(fetch, path)
        except _BeyondEndError:
            return b""

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        attempts = 0

        def put() -> None:
            nonlocal attempts
            attempts += 1
            _client().put_object(**self._object(path), Body=data, **condition)

        try:
            self._retry(put, path)
        except _ExistsError as refusal:
            # An attempt whose answer was lost may have stored the object. Then our own object makes the retry fail.
            if attempts + refusal.retries > 1 and self.read(path) == data:
                return
            raise FileExistsError(f"{self.uri}/{path} exists") from None

    def put_file(self, path: str, local_path: str | Path) -> None:
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4)
        target = self._object(path)
        self._retry(lambda: _client().upload_file(str(local_path), target["Bucket"], target["Key"], Config=parts), path)

    def size(self, path: str) -> int | None:
        try:
            return int(self._retry(lambda: _client().head_object(**self._object(path)), path)["ContentLength"])
        except FileNotFoundError:
            return None

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def version(self, path: str) -> str:
        try:
            return str(self._retry(lambda: _client().head_object(**self._object(path)), path)["ETag"])
        except FileNotFoundError:
            return ""

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        root = self._key("")
        folder = self._key(prefix)
        if folder and not folder.endswith("/"):
            folder += "/"

        def pages() -> list[tuple[str, int]]:
            found = []
            for page in _client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder):
                found += [(entry["Key"].removeprefix(root), entry["Size"]) for entry in page.get("Contents", ())]
            return [(path, size) for path, size in found if not path.endswith("/")]

        return sorted(self._retry(pages, prefix))

    def delete(self, path: str) -> None:
        self._retry(lambda: _client().delete_object(**self._object(path)), path)

    def sub(self, prefix: str) -> S3Store:
        return S3Store(uri=f"s3://{self.bucket}/{self._key(prefix)}".rstrip("/"))

    def check_access(self, *, write: bool) -> None:
        client = _client("probe")
        probe = self._object(f".access-{random.getrandbits(64):016x}")

        def touch() -> None:
            client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1)
            if write:
                client.put_object(**probe, Body=b"")
                client.delete_object(**probe)

        try:
            self._retry(touch, "", total_s=0.0)
        except FileNotFoundError:
            raise UserError(f"{_endpoint()} does not answer like an S3 server: check AWS_ENDPOINT_URL") from None

    def _key(self, path: str) -> str:
        _, prefix = self._parts
        return f"{prefix}/{inside(path)}" if prefix else inside(path)

    def _object(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(path)}

    def _retry(self, operation: Callable[[], _T], path: str, *, total_s: float | None = None) -> _T:
        """Run `operation`; repeat it, after growing pauses with jitter, while its error may be temporary."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        pause = pauses(_RETRY_FOR_S if total_s is None else total_s)
        while True:
            try:
                return operation()
            except (BotoCoreError, ClientError, Boto3Error, _ShortReadError) as raised:
                # boto3 wraps the error that stopped a file's upload.
                error = raised.__context__ if isinstance(raised, Boto3Error) and raised.__context__ else raised
                if not _transient(error) or (seconds := next(pause, None)) is None:
                    raise self._error_for_caller(error, path) from error
            count_retry()
            time.sleep(seconds)

    def _error_for_caller(self, error: BaseException, path: str) -> BaseException:
        """Return the caller's exception: a file error for the object's state, else one line without secrets."""
        status, code = _answer(error)
        if status == HTTPStatus.PRECONDITION_FAILED:
            return _ExistsError(error.response["ResponseMetadata"].get("RetryAttempts", 0))  # type: ignore[attr-defined]
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _BeyondEndError()
        if status == HTTPStatus.NOT_FOUND and code != "NoSuchBucket":
            return FileNotFoundError(f"{self.uri}/{path}")
        return UserError(self._refusal(status, code) if status else self._silence(error))

    def _refusal(self, status: int, code: str) -> str:
        """Return the message for a server that refuses the request."""
        endpoint, bucket = _endpoint(), self.bucket
        if code == "NoSuchBucket":
            create = f"aws s3api create-bucket --bucket {bucket} --endpoint-url {endpoint}"
            return f"there is no bucket {bucket!r} at {endpoint}: create it with `{create}`, or correct {self.uri}"
        if status in _REFUSED_STATUS or code in _REFUSED_CODES:
            hint = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they are allowed to do"
            return f"{endpoint} refuses access to bucket {bucket!r} ({code}): {hint}"
        return f"{endpoint} answers {status} {code} for {self.uri}"

    def _silence(self, error: BaseException) -> str:
        """Return the message if no server was asked, or none answered."""
        from botocore.exceptions import CredentialRetrievalError, NoCredentialsError, PartialCredentialsError

        if isinstance(error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)):
            hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile"
            return f"no usable S3 credentials for {self.uri}: {hint}"
        hint = "check AWS_ENDPOINT_URL and that the server runs"
        return f"no S3 server answers at {_endpoint()} for {self.uri} ({type(error).__name__}): {hint}"


def _answer(error: BaseException) -> tuple[int | None, str]:
    """Return (HTTP status, S3 error code) of a server's refusal; (None, "") if no server answered."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return None, ""
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    return int(metadata.get("HTTPStatusCode", 0)), str(error.response.get("Error", {}).get("Code", ""))


def _transient(error: BaseException) -> bool:
    from botocore.exceptions import (
        ConnectionError,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
        ResponseStreamingError,
        SSLError,
    )

    passing = (
        ConnectionError,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
        ResponseStreamingError,
        _ShortReadError,
    )
    return _answer(error)[0] in _TRANSIENT_STATUS or (isinstance(error, passing) and not isinstance(error, SSLError))


def _promised_bytes(answer: Mapping[str, Any], start: int, length: int | None) -> int:
    """Return the length that the body must have, by the answer's headers and the requested range."""
    if not start and length is None:
        return int(answer["ContentLength"])
    try:
        total = int(answer["ContentRange"].rpartition("/")[2])
    except (KeyError, ValueError):
        raise _ShortReadError("the server ignored the range") from None
    return total - start if length is None else min(length, total - start)


def configured_endpoint() -> str:
    """Return the S3 endpoint in the environment, or "" for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _endpoint() -> str:
    """Return the endpoint for messages, without a user or password."""
    return re.sub(r"//[^/]*@", "//", configured_endpoint()) or "https://s3.amazonaws.com"


def _client(use: _Use = "write") -> Any:
    """Return the process's client for a use and the environment; clients are thread-safe and expensive to make."""
    environment = tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith("AWS_")))
    return _make_client(environment, use)


@functools.lru_cache(maxsize=8)
def _make_client(_environment: tuple[tuple[str, str], ...], use: _Use) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=5,
        read_timeout=_TIMEOUT_S[use],
        retries={"mode": "standard", "total_max_attempts": 2 if use == "probe" else 3},
        signature_version="s3v4",
        s3={"addressing_style": "path" if configured_endpoint() else "auto"},
        max_pool_connections=32,
    )
    try:
        client = boto3.session.Session().client("s3", config=config)
    except ValueError:
        raise UserError(f"AWS_ENDPOINT_URL is {_endpoint()!r}, which is not a URL: write http://host:port") from None
    client.meta.events.register("needs-retry.s3", _count_attempt)
    return client


def _count_attempt(attempts: int, **_: Any) -> None:
    if attempts > 1:
        count_retry()
