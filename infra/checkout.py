"""Export the part of this checkout that a cluster's nodes need to a separate folder: `python infra/cluster.py export`.

`ray up` reads every file of a mounted folder to see what changed, even files that `rsync_exclude` names. In a whole
checkout these include `.venv`, `.git`, runs and local data. So `ray-cluster.yaml` mounts `build/ray-up`, a copy of the
files that git tracks or does not ignore. rsync never deletes on the nodes, so each node removes files that have left
the list:

    python3 ~/resnet-ray/infra/checkout.py ~/resnet-ray

This module imports only the standard library: a node runs it before any package is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPORTED = "build/ray-up"
"""Folder of the exported tree below the checkout; `file_mounts` of the cluster files name it."""
LIST = ".exported"
"""File of the exported tree that lists all its files, one a line."""
_CACHE = "__pycache__"


def export(root: Path = ROOT) -> Path:
    """Update `build/ray-up` from the checkout; return it. Files keep their times, so rsync sends only what changed.

    Raises:
        ValueError: git is missing, or `root` is not a git checkout.
    """
    target, names = root / EXPORTED, _listed_by_git(root)
    for name in names:
        source, copy = root / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.is_file() or _state(copy) != _state(source):
            shutil.copy2(source, copy)
    listed = target / LIST
    text = "".join(f"{name}\n" for name in names)
    if not listed.is_file() or listed.read_text() != text:
        listed.write_text(text)
    prune(target)
    _remove(set(_files(target)) - {*names, LIST}, target)
    return target


def prune(folder: Path) -> list[str]:
    """Remove the files that the list of an exported tree does not name; return their names.

    Only folders with listed files are searched: a node has other folders, such as `.venv` and `runs`, which stay.
    """
    names = set((folder / LIST).read_text().splitlines())
    top = {name.partition("/")[0] for name in names if "/" in name}
    gone = {
        name for name in _files(folder) if name not in names and name.partition("/")[0] in top and _CACHE not in name
    }
    _remove(gone, folder)
    return sorted(gone)


def _listed_by_git(root: Path) -> Sequence[str]:
    """Return every file of the checkout that git tracks or does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError("git is missing: install it, it lists the files that go to the nodes") from None
    if done.returncode:
        raise ValueError(f"git does not list {root}: {' '.join(done.stderr.split())}")
    return sorted({name for name in done.stdout.split("\0") if name and (root / name).is_file()})


def _files(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _remove(names: set[str], folder: Path) -> None:
    """Remove files, and folders that are empty afterwards."""
    for name in names:
        file = folder / name
        file.unlink()
        for parent in file.parents:
            shutil.rmtree(parent / _CACHE, ignore_errors=True)
            if parent == folder or any(parent.iterdir()):
                break
            parent.rmdir()


def _state(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_mode


if __name__ == "__main__":
    for name in prune(Path(sys.argv[1])):
        sys.stdout.write(f"removed {name}\n")
