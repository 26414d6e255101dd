from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra import head
from infra.errors import UserError
from infra.head import end_predecessors

SLEEP = "import time; print(0, flush=True); time.sleep(100)"
STAY = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


def process(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    started = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.readline()
    return started


def test_the_services_of_before_end_and_the_shell_that_starts_these_does_not() -> None:
    """Bash has the line that it runs as one argument."""
    shell = process(SLEEP, "cd ~/resnet-ray && python -m infra.head --mlflow state")
    before = process(SLEEP, "-m", "infra.head", "--mlflow", "state")
    try:
        end_predecessors()
        assert (before.poll() is None, shell.poll() is None) == (False, True)
    finally:
        for each in (shell, before):
            each.kill()
            each.communicate()


def test_services_that_do_not_end_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_PREDECESSOR_ENDS_WITHIN_S", 0.1)
    before = process(STAY, "-m", "infra.head")
    try:
        with pytest.raises(UserError, match=f"process {before.pid} serves here already and does not end"):
            end_predecessors()
    finally:
        before.kill()
        before.communicate()


def test_an_mlflow_that_does_not_start_is_tried_again_and_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("the MLflow server did not start: see mlflow.log")

    monkeypatch.setattr(head, "serve_mlflow", refuse)
    monkeypatch.setattr(head, "end_predecessors", lambda: None)
    monkeypatch.setattr(head, "_while_ray_runs", lambda: iter([True, True]))
    monkeypatch.setattr("sys.argv", ["head", "--mlflow", str(tmp_path)])
    head.main()
    assert capsys.readouterr().err == "the MLflow server did not start: see mlflow.log\n" * 2
