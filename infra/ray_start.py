"""Checks before Ray is started or joined: a short and writable folder, a private token, a head that answers.

Ray itself reports these errors late and in a traceback: after 14 minutes if nothing listens, after a minute on a full
disk.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from infra.errors import UserError
from infra.storage import open_store

_SOCKET_CHARS = 103  # in a Unix socket's path: macOS's limit, 4 less than Linux's
_BELOW = len("/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store")
_LEAST_BYTES = 32 << 20  # logs and sockets of a local Ray; its objects are elsewhere
_HEAD_TIMEOUT_S = 20.0
_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def short_folder(below: int) -> str | None:
    """Return /tmp if TMPDIR is too long for sockets whose paths add `below` characters; else None.

    Batch systems set such a TMPDIR.

    Raises:
        UserError: TMPDIR is too long, and /tmp cannot be written.
    """
    if len(os.fsencode(tempfile.gettempdir())) + below <= _SOCKET_CHARS:
        return None
    short = os.path.join(os.sep, "tmp")
    if os.access(short, os.W_OK | os.X_OK):
        return short
    raise UserError(_too_long("TMPDIR", tempfile.gettempdir(), below))


def ray_folder() -> str | None:
    """Return the folder for a local Ray, or None if Ray's default will do.

    Raises:
        UserError: the folder's path is too long for Ray's sockets, or the folder cannot be written or is full.
    """
    own = os.environ.get("RAY_TMPDIR")
    if own and len(os.fsencode(own)) + _BELOW > _SOCKET_CHARS:
        raise UserError(_too_long("RAY_TMPDIR", own, _BELOW))
    short = None if own else short_folder(_BELOW)
    parent = own or short or tempfile.gettempdir()
    try:
        open_store(os.path.join(parent, "ray")).check_access(write=True)
    except UserError as error:
        raise UserError(f"Ray has no place for its files: {error} (set RAY_TMPDIR to another folder)") from error
    if (free := shutil.disk_usage(_existing(Path(parent))).free) < _LEAST_BYTES:
        hint = "free some space, or set RAY_TMPDIR to a short folder on another disk"
        raise UserError(f"Ray has no room for its files: {free >> 20} MiB are free in {parent}: {hint}")
    return os.path.join(short, "ray") if short else None


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest parent that exists: Ray creates its own folder."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def use_own_token() -> None:
    """Give a local Ray a private token, unless the environment sets one.

    Without this, Ray writes a token to ~/.ray/auth_token, where it affects every later Ray of this user. Ray also fails
    if it cannot write that file.
    """
    if any(os.environ.get(name) for name in _TOKEN_VARIABLES):
        return
    handle, file = tempfile.mkstemp(prefix="resnet-ray-token-")  # readable by this user only
    with os.fdopen(handle, "w") as opened:
        opened.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = file
    atexit.register(_remove, file)


def _remove(file: str) -> None:
    with suppress(OSError):
        Path(file).unlink()


def check_head(address: str) -> None:
    """Fail within half a minute if no head of a Ray cluster answers.

    Raises:
        UserError: nothing answers at `address`, or `address` is not that of a head.
    """
    if address.startswith(("http://", "https://")):
        hint = "to run on that cluster use `ray job submit`; to join it, give the head's HOST:6379"
        raise UserError(f"RAY_ADDRESS is {address}, a job server: {hint}")
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # the check below would need Ray's certificates
    import grpc

    with grpc.insecure_channel(address.removeprefix("ray://"), options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_HEAD_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            hint = "start the cluster, correct RAY_ADDRESS, or unset it to start Ray on this machine"
            raise UserError(f"no Ray cluster answers at {address} (RAY_ADDRESS): {hint}") from None


def _too_long(variable: str, folder: str, below: int) -> str:
    most = _SOCKET_CHARS - below
    return (
        f"{variable} is too long for Ray's sockets ({folder}): set RAY_TMPDIR to a folder of at most {most} characters"
    )
