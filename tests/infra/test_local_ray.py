"""The Ray that a command starts for itself: its workers start quickly, and it ends with the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ray._private.runtime_env.context import RuntimeEnvContext

from infra.setup_worker import worker_command

ROOT = Path(__file__).parents[2]
LEAVES_A_PROCESS = """
import subprocess, sys, time
import infra.cluster

infra.cluster.connect(min_cpus=1)
import ray

@ray.remote
def start_detached(session):
    '''As a worker that has started and does not find its Ray: nobody's child, and in a session of its own.'''
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)", f"--session-name={session}"]
    shell = f"import subprocess; print(subprocess.Popen({sleeper!r}, start_new_session=True, stdout=-3, stderr=-3).pid)"
    return int(subprocess.run([sys.executable, "-c", shell], capture_output=True, check=True).stdout)

@ray.remote
def colour():
    import os
    return os.environ["COLOUR"]

import json, psutil
started = [each.cmdline() for each in psutil.Process().children()]
red = colour.options(runtime_env={"env_vars": {"COLOUR": "red"}}).remote()
left = ray.get(start_detached.remote(ray.get_runtime_context().get_session_name()))
print(json.dumps({"left": left, "colour": ray.get(red), "started": started}))
"""
PROGRAM = ROOT / "infra" / "setup_worker.py"


def arguments(**context: object) -> list[str]:
    """Those that Ray's node gives to its setup_worker.py."""
    serialized = RuntimeEnvContext(**context).serialize()  # type: ignore[arg-type]
    return [
        "worker.py",
        "--node-ip-address=127.0.0.1",
        "--language=PYTHON",
        f"--serialized-runtime-env-context={serialized}",
    ]


def test_a_worker_with_variables_is_started_without_ray() -> None:
    found = worker_command(arguments(env_vars={"COLOUR": "red", "EMPTY": ""}))
    assert found == (
        [sys.executable, "worker.py", "--node-ip-address=127.0.0.1"],
        {"COLOUR": "red", "EMPTY": ""},
    )


@pytest.mark.parametrize(
    "context",
    [
        {"env_vars": {"PATH": "/opt:${PATH}"}},
        {"command_prefix": ["cd /opt &&"]},
        {"override_worker_entrypoint": "other.py"},
    ],
)
def test_what_only_ray_can_do_is_left_to_ray(context: dict[str, object]) -> None:
    assert worker_command(arguments(**context)) is None
    assert worker_command(["worker.py", "--language=PYTHON"]) is None
    assert worker_command([each.replace("PYTHON", "JAVA") for each in arguments(env_vars={"COLOUR": "red"})]) is None


def test_rays_own_program_is_where_the_other_cases_are_sent(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import os, sys; print(os.environ['COLOUR'], *sys.argv[1:])")
    _, *rest = arguments(env_vars={"COLOUR": "red${NOTHING}"})
    done = subprocess.run([sys.executable, PROGRAM, worker, *rest], capture_output=True, text=True, check=True)
    assert done.stdout == "red --node-ip-address=127.0.0.1\n"


@pytest.mark.faults
def test_its_workers_start_by_our_program_and_none_outlives_the_command() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-c", LEAVES_A_PROCESS]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(ended.stdout)
    assert told["colour"] == "red"
    (command,) = [each for words in told["started"] for each in words if "--python_worker_command" in each]
    assert f"{sys.executable} {PROGRAM} " in command
    left_out = ("monitor.py", "dashboard.py")  # log_monitor.py, too
    assert not [words for words in told["started"] if any(each.endswith(left_out) for each in words)]
    left = told["left"]
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
