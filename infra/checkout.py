"""The part of this checkout that goes to a cluster's nodes, as a folder of its own: `python infra/cluster.py export`.

`ray up` reads every file of a folder that it mounts to see what changed, whatever `rsync_exclude` says: of a whole
checkout that is `.venv`, `.git`, runs and local data. So `ray-cluster.yaml` mounts `build/ray-up`, which holds what git
tracks or would track, as it is now. rsync never deletes on the nodes, so each of them removes what has left the list:

    python3 ~/resnet-ray/infra/checkout.py ~/resnet-ray

Only the standard library is imported here: a node runs this before it has any package.
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
    """Bring `build/ray-up` in step with the checkout; return it. Files keep their times, so rsync sends what changed.

    Raises:
        ValueError: git is missing, or this is no checkout of git's.
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
    """Remove what the list of an exported tree does not name; return it.

    Only folders that the list has files in are searched: a node keeps others, such as `.venv` and `runs`, beside them.
    """
    names = set((folder / LIST).read_text().splitlines())
    top = {name.partition("/")[0] for name in names if "/" in name}
    gone = {
        name for name in _files(folder) if name not in names and name.partition("/")[0] in top and _CACHE not in name
    }
    _remove(gone, folder)
    return sorted(gone)


def _listed_by_git(root: Path) -> Sequence[str]:
    """Every file that git tracks or does not ignore, as it lies in the checkout."""
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
    """Remove files, and folders that have become empty by it."""
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
