"""The Ray that a command starts for itself ends with the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

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

print(ray.get(start_detached.remote(ray.get_runtime_context().get_session_name())))
"""


@pytest.mark.faults
def test_no_process_of_it_outlives_the_command() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-c", LEAVES_A_PROCESS]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    left = int(ended.stdout)
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
