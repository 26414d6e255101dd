"""What holds for every entry point and every file, without running a cluster (tests/services and tests/cluster do)."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS = [file for file in sorted((ROOT / "pipelines").glob("*.py")) if "__main__" in file.read_text()]
TRACKED = subprocess.run(
    ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False
).stdout.split()
KEYS = {
    "AWS access key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "password in a URI": r"\w+://[^/\s:@{}<>$]+:[^/\s@{}<>$]+@(?!HOST)",
    "AWS secret": r"(?i)aws_secret_access_key\s*[=:]\s*[\"']?[0-9a-z+/]{30,}",
}
# Placeholders of the documentation and of tests, which are no secrets.
_ALLOWED = ("USER:PASSWORD@", "//me:", "//user:", "//key:")


@pytest.mark.parametrize("file", ENTRY_POINTS, ids=lambda file: file.stem)
def test_every_entry_point_goes_through_the_one_that_refuses_pickles(file: Path):
    last = ast.unparse(ast.parse(file.read_text()).body[-1])
    assert "cli.run(main)" in last or "cli.run(main, " in last


def test_pickles_are_refused_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    seen = []
    with pytest.raises(SystemExit):
        cli.run(lambda: seen.append(os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]))
    assert seen == ["false"]


@pytest.mark.parametrize("name", [name for name in TRACKED if name.endswith((".yaml", ".toml", "Makefile"))])
def test_whatever_starts_mlflow_refuses_pickles(name: str):
    text = (ROOT / name).read_text()
    if "mlflow server" in text:
        assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false" in text


def test_no_file_holds_a_secret():
    assert TRACKED or not (ROOT / ".git").exists()
    found = []
    for name in TRACKED:
        file = ROOT / name
        if not file.is_file() or file.suffix in (".png", ".jpg"):
            continue
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            for what, pattern in KEYS.items():
                match = re.search(pattern, line)
                if match and not any(allowed in match.group() for allowed in _ALLOWED):
                    found.append(f"{name}:{number}: {what}")
    assert found == []


def test_a_local_ray_stays_on_loopback():
    """In a process of its own, since Ray reads the setting when it is imported."""
    program = """
import os, psutil, infra.cluster
os.environ.pop("RAY_ADDRESS", None)
infra.cluster.connect(min_cpus=1)
import ray
me = psutil.Process()
for process in [me, *me.children(recursive=True)]:
    for each in process.net_connections("inet"):
        if each.status == psutil.CONN_LISTEN:
            print("LISTENS", process.name(), each.laddr.ip)
"""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=250)
    listening = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("LISTENS")]
    assert {name for name, _ in listening} >= {"raylet", "gcs_server"}, done.stderr[-2000:]
    assert {address for _, address in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}
