"""The Ray that a command starts for itself: its workers start quickly, and it ends with the command."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from ray._private.runtime_env.context import RuntimeEnvContext

from infra.local_ray.fork_server import ALWAYS, ForkServer
from infra.local_ray.start_worker import FORKED, SOCKET, worker_command
from pipelines.evaluation import TASK_MODULES
from pipelines.serving import server
from pipelines.training import WORKER_MODULES

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "infra" / "local_ray" / "start_worker.py"
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

import json, psutil
started = [each.cmdline() for each in psutil.Process().children()]
left = ray.get(start_detached.remote(ray.get_runtime_context().get_session_name()))
print(json.dumps({"left": left, "started": started}))
"""
COMPARES_WORKERS = """
import json, sys
import infra.cluster

infra.cluster.warm_up(["torch"])
infra.cluster.connect(min_cpus=1)
import psutil, ray
from infra.local_ray import start

@ray.remote
class Worker:
    def facts(self):
        import os, random, signal, sys
        import numpy, psutil, torch
        own = psutil.Process()
        return {
            "pid": own.pid,
            "parent": own.ppid(),
            "leads": os.getpgid(0) == own.pid,
            "colour": os.environ.get("COLOUR"),
            "program": os.path.basename(sys.argv[0]),
            "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "random": [ray.ObjectRef.from_random().hex(), random.random(), numpy.random.random()],
            "sockets": [each for each in own.net_connections("unix") if "resnet-ray-fork" in each.laddr],
            "product": float((torch.ones(300, 300) @ torch.ones(300, 300)).sum()),
        }

variables = [{}, {}, {"COLOUR": "red"}, {"OMP_NUM_THREADS": "2"}]
workers = [Worker.options(runtime_env={"env_vars": each} if each else None).remote() for each in variables]
facts = ray.get([each.facts.remote() for each in workers])
server = start._fork_server
print(json.dumps({"server": server.process.pid, "socket": server.path, "facts": facts}), flush=True)
sys.stdin.read()
"""


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


def test_a_worker_without_a_runtime_environment() -> None:
    found = worker_command(["worker.py", "--node-id=1", "--language=PYTHON"])
    assert found == ([sys.executable, "worker.py", "--node-id=1"], {})


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
    assert worker_command(["worker.py", "--language=JAVA"]) is None
    assert worker_command([each.replace("PYTHON", "JAVA") for each in arguments(env_vars={"COLOUR": "red"})]) is None


def test_rays_own_program_is_where_the_other_cases_are_sent(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import os, sys; print(os.environ['COLOUR'], *sys.argv[1:])")
    _, *rest = arguments(env_vars={"COLOUR": "red${NOTHING}"})
    done = subprocess.run([sys.executable, PROGRAM, worker, *rest], capture_output=True, text=True, check=True)
    assert done.stdout == "red --node-ip-address=127.0.0.1\n"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


@pytest.mark.faults
def test_its_workers_start_by_our_program_and_none_outlives_the_command(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", LEAVES_A_PROCESS]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(ended.stdout)
    (command,) = [each for words in told["started"] for each in words if "--python_worker_command" in each]
    assert f"{sys.executable} {PROGRAM} " in command
    left_out = ("monitor.py", "dashboard.py")  # log_monitor.py, too
    assert not [words for words in told["started"] if any(each.endswith(left_out) for each in words)]
    assert _has_ended(told["left"])


@pytest.mark.faults
def test_its_workers_are_forked_and_differ_where_processes_must(environment: dict[str, str]) -> None:
    """As they are in a Ray without a fork server; and all of them end when the command is killed."""
    command = [sys.executable, "-c", COMPARES_WORKERS]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=-1, stdout=-1, text=True) as run:
        assert run.stdin and run.stdout
        told = json.loads(run.stdout.readline())
        processes = [psutil.Process(each) for each in (told["server"], *(facts["pid"] for facts in told["facts"]))]
        run.kill()
    assert [each["parent"] == told["server"] for each in told["facts"]] == [True, True, True, False]
    assert [each["colour"] for each in told["facts"]] == [None, None, "red", None]
    for facts in told["facts"]:
        assert facts["leads"] and facts["interrupt"] and facts["program"] == "default_worker.py"
        assert facts["sockets"] == []
        assert facts["product"] == 300.0**3
    for values in zip(*(each["random"] for each in told["facts"]), strict=True):
        assert len(set(values)) == len(values)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive
    assert not Path(told["socket"]).parent.exists()


def test_a_worker_starts_without_a_fork_server(tmp_path: Path, environment: dict[str, str]) -> None:
    """It has ended, or refuses the worker's environment."""
    worker = tmp_path / "worker.py"
    worker.write_text("import os, sys; print(os.environ['COLOUR'], os.environ.get(sys.argv[1]))")
    rest = [each for each in arguments(env_vars={"COLOUR": "red"}) if not each.startswith("--node")]
    command = [sys.executable, str(PROGRAM), str(worker), SOCKET, *rest[1:]]
    for path in (str(tmp_path / "nobody"), _refusing(tmp_path / "refusing")):
        done = subprocess.run(command, env=environment | {SOCKET: path}, capture_output=True, text=True, check=True)
        assert done.stdout == "red None\n"


def test_a_long_tmpdir_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    forking = ForkServer((), os.environ)
    folder = Path(forking.path).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    forking.close()
    assert not folder.exists()
    with pytest.raises(psutil.NoSuchProcess):
        _ = forking.process


def test_a_worker_that_cannot_begin_is_no_second_server(tmp_path: Path, environment: dict[str, str]) -> None:
    """Its working directory is gone. The server goes on."""
    worker = tmp_path / "worker.py"
    worker.write_text("import os; print('in', os.getcwd(), flush=True)")
    forking = ForkServer((), environment)
    try:
        for folder in (str(tmp_path / "gone"), str(tmp_path)):
            reading, writing = os.pipe()
            request = {"argv": [str(worker)], "cwd": folder, "environment": environment, "leads": True, "blocked": []}
            text = json.dumps(request).encode()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(forking.path)
                socket.send_fds(connection, [len(text).to_bytes(4, "big")], [0, writing, 2])
                connection.sendall(text)
                assert connection.recv(1) == FORKED
            os.close(writing)
            with open(reading) as said:  # to its end: nobody holds the worker's output any longer
                assert said.read() == ("" if folder.endswith("gone") else f"in {tmp_path}\n")
    finally:
        forking.close()


def _refusing(path: Path) -> str:
    """Return the path of a socket whose connections are closed without an answer."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def refuse() -> None:
        connection, _ = listening.accept()
        connection.close()

    threading.Thread(target=refuse, daemon=True).start()
    return str(path)


def test_every_module_to_import_early_exists() -> None:
    """The fork server passes over one that does not."""
    for name in (*ALWAYS, *WORKER_MODULES, *TASK_MODULES, *server.MODULES):
        importlib.import_module(name)


def _has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
