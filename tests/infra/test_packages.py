"""infra/aws/packages.sh in an empty home: it installs a runtime lock by its hashes, once, without tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("psutil", "tomli-w")


def entry(lock: str, package: str) -> str:
    text = (ROOT / lock).read_text()
    found = re.search(rf"(?ms)^{re.escape(package)}==.*?(?=^\S|\Z)", text)
    assert found
    return found[0]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's home with the checkout in it, whose runtime lock is two small packages of the real one."""
    checkout = tmp_path / "resnet-ray"
    (checkout / "infra/aws").mkdir(parents=True)
    for name in ("infra/aws/packages.sh", "infra/aws/node.sh", "infra/interface.py", "requirements.lock"):
        shutil.copy(ROOT / name, checkout / name)
    (checkout / "requirements-runtime.lock").write_text(
        "".join(entry("requirements-runtime.lock", each) for each in SMALL)
    )
    (tmp_path / ".bashrc").write_text("# the image's own\n")
    return tmp_path


def run(home: Path, line: str, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON"))}
    python = Path(sys.executable).resolve().parent
    environment = {**kept, "HOME": str(home), "PATH": f"{python}:/usr/bin:/bin", **more}
    return subprocess.run(["bash", "-c", line], cwd=home, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.faults
def test_a_node_gets_the_lock_and_nothing_else_and_the_second_time_nothing(home: Path) -> None:
    install = "bash ~/resnet-ray/infra/aws/packages.sh"
    first = run(home, install)
    if "error sending request" in first.stderr or "Could not find a version" in first.stderr:
        pytest.skip("no package registry answers here")
    assert first.returncode == 0, first.stderr
    listed = run(home, "~/venv/bin/uv pip list --format freeze --python ~/venv/bin/python").stdout.lower()
    names = {line.partition("==")[0] for line in listed.split()}
    assert set(SMALL) <= names <= {*SMALL, "pip", "setuptools", "uv"}
    assert (home / "venv/installed.lock").read_text() == (home / "resnet-ray/requirements-runtime.lock").read_text()
    stamp = (home / "venv/installed.lock").stat().st_mtime_ns
    assert run(home, install).returncode == 0
    assert (home / "venv/installed.lock").stat().st_mtime_ns == stamp
    assert (home / ".bashrc").read_text().count("infra/aws/node.sh") == 1
    # what Ray does before every command in the container
    assert run(home, "source ~/.bashrc; command -v python").stdout.strip() == str(home / "venv/bin/python")
    told = run(home, "source ~/.bashrc; . ~/resnet-ray/infra/aws/node.sh; env", RAY_HEAD_IP="127.0.0.1").stdout
    assert "GLOO_SOCKET_IFNAME=lo" in told and "NCCL_SOCKET_IFNAME=lo" in told


@pytest.mark.faults
def test_a_package_whose_hash_differs_is_not_installed(home: Path) -> None:
    lock = home / "resnet-ray/requirements-runtime.lock"
    lock.write_text(re.sub(r"sha256:\w{8}", "sha256:00000000", lock.read_text()))
    done = run(home, "bash ~/resnet-ray/infra/aws/packages.sh")
    if "error sending request" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip("no package registry answers here")
    assert done.returncode != 0 and "hash" in done.stderr.lower()
    assert not (home / "venv/installed.lock").exists()


@pytest.mark.parametrize("name", ["infra/aws/packages.sh", "infra/docker/Dockerfile"])
def test_every_installation_is_checked_by_hashes(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = re.findall(r"pip (?:install|sync)\b[^&\n]*", text)
    assert len(found) == 2  # uv, and by it all others
    assert all("--require-hashes" in each for each in found), found


def test_an_image_that_brings_the_packages_is_left_as_it_is(home: Path) -> None:
    """As infra/docker/Dockerfile makes it: no network, no python, nothing but a comparison."""
    (home / "venv").mkdir()
    shutil.copy(home / "resnet-ray/requirements-runtime.lock", home / "venv/installed.lock")
    done = run(home, "bash ~/resnet-ray/infra/aws/packages.sh", PATH="/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (home / "venv").iterdir()] == ["installed.lock"]


def test_the_image_puts_packages_and_lock_where_the_nodes_look_for_them() -> None:
    text = (ROOT / "infra/docker/Dockerfile").read_text()
    assert "/home/ray/venv /home/ray/venv" in text and "venv/installed.lock" in text
    assert "HOME=/home/ray" in text and "--uid 1000" in text
    assert {"rsync", "openssh-client"} <= set(text.split())  # what Ray's DockerCommandRunner and autoscaler call
    mounts = (ROOT / "ray-cluster.yaml").read_text()
    assert "/home/ray/resnet-ray: build/ray-up" in mounts and "WORKDIR /home/ray/resnet-ray" in text
