"""Download of one file over http(s): redirects, a cut transfer that is resumed, a length and a hash that must hold."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import urlsplit

from infra.errors import UserError
from infra.retry import pauses

_RETRY_FOR_S = 8.0
_TIMEOUT_S = 30.0  # without a byte
_CHUNK = 1 << 20
_LASTING = frozenset({400, 401, 403, 404, 405, 410, 451})  # HTTP statuses that a retry does not change
_ABSENT = frozenset({401, 403, 404, 410})  # Hugging Face answers 401 for repositories that do not exist
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_HF_HASH = "X-Linked-ETag"  # SHA-256 of a large file, in Hugging Face's redirect to its storage


class Unreachable(UserError):
    """The server does not answer, or breaks off each time; the file may be there."""


class Absent(UserError):
    """The server has no such file for us."""


@dataclass
class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the hash that the first server gives."""

    sha256: str = ""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.sha256 = self.sha256 or hash_in(headers)
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise Absent(f"the server redirects to {urlsplit(newurl).scheme}://, which is refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass
class _Transfer:
    """What has been received of one file."""

    url: str
    data: bytearray = field(default_factory=bytearray)
    total: int | None = None  # bytes, if the server says so
    sha256: str = ""  # as the server gives it
    version: str = ""  # of the file on the server: its ETag

    @property
    def complete(self) -> bool:
        return self.total is not None and len(self.data) == self.total

    def receive(self) -> None:
        """Receive the rest of the file, or the whole file if the server cannot continue."""
        request = urllib.request.Request(self.url, headers={"User-Agent": "resnet-ray", "Accept-Encoding": "identity"})
        if token := _token(self.url):
            request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for the server of a redirect
        if self.data:
            request.add_header("Range", f"bytes={len(self.data)}-")
            if self.version:
                request.add_header("If-Range", self.version)
        redirects = _Redirects()
        with urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT_S) as answer:
            if answer.status != http.client.PARTIAL_CONTENT:
                self.data.clear()
            length = answer.headers.get("Content-Length")
            self.total = len(self.data) + int(length) if length and length.isdigit() else None
            self.sha256 = self.sha256 or redirects.sha256 or hash_in(answer.headers)
            self.version = answer.headers.get("ETag") or ""
            self._read(answer)
        if self.total is None:
            self.total = len(self.data)

    def _read(self, answer: IO[bytes]) -> None:
        while chunk := answer.read(_CHUNK):
            self.data += chunk


def download(url: str, *, sha256: str = "", what: str = "") -> bytes:
    """Return the content of a URL.

    Args:
        url: address of the file.
        sha256: all or the start of the file's SHA-256, in hex; "" = unknown.
        what: name of the file for errors; "" = the URL.

    Raises:
        Absent: the server has no such file, or does not show it to us.
        Unreachable: there is no network, or the server breaks off or refuses again and again.
        UserError: the content has another hash.
    """
    what = what or url
    transfer, reason, waits = _Transfer(url), "", pauses(_RETRY_FOR_S)
    while True:
        before = len(transfer.data)
        try:
            transfer.receive()
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                transfer.data.clear()
            elif error.code in _LASTING:
                kind = Absent if error.code in _ABSENT else Unreachable
                raise kind(f"{what}: the server answers {reason}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        if transfer.complete:
            data = bytes(transfer.data)
            for expected in (sha256, transfer.sha256):
                check_hash(data, expected, what)
            return data
        if len(transfer.data) > before:  # a slow line may break off often
            waits = pauses(_RETRY_FOR_S)
        pause = next(waits, None)
        if pause is None:
            break
        time.sleep(pause)
    cut = (
        f"{len(transfer.data):,} of {transfer.total:,} bytes came" if transfer.data and transfer.total else "no answer"
    )
    raise Unreachable(f"{what}: cannot be downloaded: {reason or cut}")


def check_hash(data: bytes, expected: str, what: str) -> None:
    """Raise UserError unless the SHA-256 of `data` begins with `expected`; "" = any."""
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(expected):
        raise UserError(
            f"{what} has changed or is damaged: its sha256 must be {shortened(expected)}, got {shortened(found)}"
        )


def shortened(sha256: str) -> str:
    """Return the start of a hash, for messages."""
    return f"{sha256[:16]}…" if len(sha256) > 16 else sha256  # noqa: PLR2004


def hash_in(headers: Mapping[str, str]) -> str:
    """Return the SHA-256 that Hugging Face gives of a file, or ""."""
    found = _SHA256.fullmatch(headers.get(_HF_HASH) or "")
    return found[1] if found else ""


def _token(url: str) -> str:
    """Return the user's token for Hugging Face, if the URL is there."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return os.environ.get("HF_TOKEN", "") if url.startswith(f"{endpoint}/") else ""
