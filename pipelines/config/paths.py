"""Paths that a user gives: a command makes them absolute when it reads them, and short when it prints them.

A trial of Ray Tune and a worker on another node run in other folders than the command. Relative paths must therefore
not reach them.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from infra.cluster import in_job

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # s3://…, file:///…, models:/…
_JOBS = "~/resnet-ray"


@dataclass(frozen=True, slots=True)
class Here:
    """Folders in which a command's relative paths begin."""

    folder: str
    """The current folder; in a Ray job RESNET_RAY_STORAGE, such as s3://BUCKET."""
    disk: str
    """The same for paths that cannot be on S3."""


def here() -> Here:
    """Return where relative paths begin.

    Ray runs a job in a temporary copy of the submitted folder. A job's paths therefore begin in RESNET_RAY_STORAGE, or,
    if that is not set, in ~/resnet-ray of the node.
    """
    current = os.getcwd()
    if not in_job():
        return Here(current, current)
    disk = absolute(_JOBS, current)
    return Here(absolute(os.environ.get("RESNET_RAY_STORAGE", ""), current) or disk, disk)


def destination(path: str) -> str:
    """Return a path of the command line that is written: unchanged, but in a Ray job relative to `here().folder`."""
    return absolute(path, here().folder) if in_job() else path


def destination_on_disk(path: str) -> str:
    """Return a path of the command line that is written and cannot be on S3, as `destination` does."""
    return absolute(path, here().disk) if in_job() else path


def origin(path: str, words: Sequence[str] = ()) -> str:
    """Return a path of the command line that is read: a Ray job looks into the submitted folder first.

    A path that is one of `words`, such as the name of an embedded source, is returned unchanged.
    """
    return path if path in words or os.path.exists(path) or next(glob.iglob(path), None) else destination(path)


def absolute(path: str, folder: str) -> str:
    """Return `path` as seen from `folder`; URIs and "" stay unchanged, `~` becomes the home folder."""
    if not path or _URI.match(path):
        return path
    path = os.path.normpath(os.path.expanduser(path))
    if os.path.isabs(path):
        return path
    return f"{folder.rstrip('/')}/{path}" if _URI.match(folder) else os.path.normpath(os.path.join(folder, path))


def shown(path: str) -> str:
    """Return `path` as messages name it: relative if it is below the current folder."""
    return below(path, os.getcwd())


def below(path: str, folder: str) -> str:
    """Return `path` relative to `folder` if it is below it, else unchanged."""
    return path.removeprefix(f"{folder.rstrip('/')}/") if folder else path


def hint_of_job(path: str) -> str:
    """Return an explanation of a job's relative paths if `path` was one of them, else ""."""
    if not in_job() or below(path, absolute(_JOBS, os.sep)) == path:
        return ""
    return (
        f". Ray runs a job in a temporary copy of this folder; relative paths mean {_JOBS}/… on the node: "
        "give an absolute path or s3://…"
    )
