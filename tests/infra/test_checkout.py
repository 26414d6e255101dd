"""The tree that `ray up` mounts is what git tracks, as it is now; nodes lose what has left it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra.checkout import EXPORTED, LIST, export, prune

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in (
        "infra/head.py",
        "pipelines/data/shards/reader.py",
        "README.md",
        ".venv/bin/python",
        "runs/big",
        "new.toml",
    ):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (root / ".gitignore").write_text("/.venv/\n/runs/\n/build/\n__pycache__/\n")
    os.utime(root / "infra/head.py", (1_000_000_000, 1_000_000_000))
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@x"]
    for line in (["init", "-q"], ["add", "infra", "pipelines", "README.md", ".gitignore"]):
        subprocess.run([*git, *line], check=True)
    return root


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


CODE = {"infra/head.py", "pipelines/data/shards/reader.py", "README.md", ".gitignore", "new.toml"}


def test_it_has_what_git_tracks_or_would_and_nothing_else(checkout: Path) -> None:
    folder = export(checkout)
    assert folder == checkout / EXPORTED
    assert names(folder) == CODE | {LIST}
    assert (folder / "infra/head.py").stat().st_mtime == 1_000_000_000  # rsync goes by time and size


def test_what_changes_or_leaves_the_checkout_does_so_there(checkout: Path) -> None:
    folder = export(checkout)
    (checkout / "pipelines/data/shards/reader.py").unlink()
    (checkout / "infra/head.py").write_text("changed")
    (folder / "notes.txt").write_text("somebody's")
    export(checkout)
    assert names(folder) == (CODE | {LIST}) - {"pipelines/data/shards/reader.py"}
    assert (folder / "infra/head.py").read_text() == "changed"
    assert not (folder / "pipelines").exists()


def test_a_node_loses_what_left_the_list_and_keeps_its_own(checkout: Path, tmp_path: Path) -> None:
    """rsync without --delete: the new files over the old ones."""
    node = tmp_path / "node"
    subprocess.run(["cp", "-a", f"{export(checkout)}/.", node], check=True)
    for name in (
        ".venv/bin/ray",
        "runs/x",
        "infra/__pycache__/head.pyc",
        "pipelines/data/__pycache__/read.pyc",
        "my.log",
    ):
        (node / name).parent.mkdir(parents=True, exist_ok=True)
        (node / name).touch()
    (checkout / "pipelines/data/shards/reader.py").rename(checkout / "pipelines/read.py")
    subprocess.run(["cp", "-a", f"{export(checkout)}/.", node], check=True)
    command = [sys.executable, "-S", str(ROOT / "infra/checkout.py"), str(node)]  # without any package
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "removed pipelines/data/shards/reader.py\n"
    assert not (node / "pipelines/data").exists() and (node / "pipelines/read.py").exists()
    assert {".venv/bin/ray", "runs/x", "my.log", "infra/__pycache__/head.pyc"} <= names(node)
    assert prune(node) == []


def test_ray_reads_only_the_tree(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's hash of what it mounts, which decides whether nodes are set up anew, knows no `rsync_exclude`."""
    from ray.autoscaler._private import util

    monkeypatch.chdir(checkout)
    mounts = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["file_mounts"]
    code = {target: source for target, source in mounts.items() if target.endswith("/resnet-ray")}
    assert set(code.values()) == {EXPORTED}

    def hashed() -> str:
        util._hash_cache.clear()
        found: str = util.hash_runtime_conf(code, None, {})[0]
        return found

    export(checkout)
    before = hashed()
    (checkout / "runs/big").write_text("a run goes on")
    export(checkout)
    assert hashed() == before
    (checkout / "infra/head.py").write_text("code changes")
    export(checkout)
    assert hashed() != before


def test_where_git_cannot_list_the_files_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"git does not list .*: fatal: not a git repository"):
        export(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="git is missing"):
        export(tmp_path)
