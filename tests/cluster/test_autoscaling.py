"""The node types of ray-cluster.yaml under Ray's own autoscaler, from no worker at all: which nodes a run brings.

Ray's fake provider starts nodes as processes of this machine, so types, labels and priorities are those of the file,
and CPUs fewer. CPU nodes, of which the file lets none come, come here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.processes import command_line
from tests.mlflow_server import a_free_port

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
ROOT = Path(__file__).resolve().parents[2]
HEAD = "ray.head.default"  # as the fake provider calls it, and all processes of its nodes
CPUS, NODES = 2, 2  # of each worker; of each type at most


FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
SOLD_OUT, ONE_LEFT = "tests.cluster.sold_out.SoldOut", "tests.cluster.sold_out.OneLeft"


def configuration(gcs: str, provider: str) -> dict[str, Any]:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    file = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
    types = {}
    for name, kind in file["available_node_types"].items():
        head = name == file["head_node_type"]
        resources = {**kind["resources"], "CPU": 0 if head else CPUS}
        kept = {key: kind[key] for key in ("labels", "priority", "min_workers") if key in kind}
        types[HEAD if head else name] = {
            **kept,
            "resources": resources,
            "node_config": {
                key: kind["node_config"][key] for key in ("InstanceMarketOptions",) if key in kind["node_config"]
            },
            "max_workers": 0 if head else NODES,
        }
    commands = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "from-zero",
        "max_workers": file["max_workers"],
        "upscaling_speed": file["upscaling_speed"],
        "idle_timeout_minutes": 0.1,
        "provider": {
            **{"type": "external", "module": provider, "launch_multiple": True},
            **{"head_node_id": FAKE_HEAD_NODE_ID, "gcs_address": gcs},
        },
        "auth": {},
        "head_node_type": HEAD,
        "available_node_types": types,
        **{f"{name}_commands": [] for name in commands},
        **{"file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False},
        **{"rsync_exclude": [], "rsync_filter": []},
    }


def of_the_autoscaler() -> dict[str, str]:
    """What ray-cluster.yaml puts into the environment of the head's autoscaler."""
    options = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["docker"]["head_run_options"]
    pairs = [option.removeprefix("-e ").split("=", 1) for option in options if "AUTOSCALER_" in option]
    return dict(pairs)


@pytest.fixture
def head(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The environment of a driver on the head of such a cluster, which has no worker yet; `param` is its provider."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    with tempfile.TemporaryDirectory(prefix="zero-", ignore_cleanup_errors=True) as folder:  # short: Ray's sockets
        port = a_free_port()
        file = Path(folder, "cluster.json")
        file.write_text(json.dumps(configuration(f"127.0.0.1:{port}", request.param)))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment = kept | {
            **{"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
            **{"PYTHONPATH": str(ROOT), "RAY_ADDRESS": f"127.0.0.1:{port}"},
        }
        fake = {
            **{"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"},
            **{"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID},
        }
        started = {
            key: value for key, value in (environment | fake | of_the_autoscaler()).items() if key != "RAY_ADDRESS"
        }
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}"]
        command += ["--node-ip-address=127.0.0.1", "--num-cpus=0", "--num-gpus=0", f"--autoscaling-config={file}"]
        command += ["--include-dashboard=false", f"--dashboard-agent-listen-port={a_free_port()}"]
        try:
            done = subprocess.run(
                [*command, "--disable-usage-stats"], env=started, capture_output=True, text=True, timeout=100
            )
            assert done.returncode == 0, done.stdout + done.stderr
            yield environment
        finally:
            left = [process for process in psutil.process_iter() if folder in command_line(process)]
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=20)


def driven(environment: dict[str, str], folder: Path, rows: int, gpus: int = 1) -> dict[str, Any]:
    """What `tests.cluster.from_zero` tells."""
    command = [sys.executable, "-m", "tests.cluster.from_zero", str(folder), str(rows), str(gpus)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # Ray tells things there, too
    told: dict[str, Any] = json.loads(line)
    return told


@pytest.mark.parametrize("head", [FAKE], indirect=True, ids=[""])
def test_from_zero_data_tasks_bring_cpu_nodes_and_no_gpu_node(head: dict[str, str], tmp_path: Path) -> None:
    """Of GPU nodes there come as many as the run has workers, spot ones, and in the end all go."""
    told = driven(head, tmp_path, rows=70_000)
    assert told["refused"] == {"CPU": 4 * NODES * CPUS, "GPU": 2 * NODES}  # the most that all types together have
    most = told["most"]
    assert {name: count for name, count in most.items() if name.startswith("gpu")} == {"gpu-worker": 1}
    # Ray Data asks for more every ten seconds: a fast machine is done by then, a slow one has every spot node and
    # then asks for nodes on demand
    assert 1 <= most["cpu-worker"] <= NODES
    assert most["cpu-worker"] == NODES or most.keys() == {"gpu-worker", "cpu-worker"}
    assert told["ingest"] > 0  # CPU seconds of data tasks on nodes with that label
    assert told["end"] == {}


@pytest.mark.parametrize("head", [SOLD_OUT], indirect=True, ids=[""])
def test_where_no_spot_node_is_to_be_had_one_on_demand_comes(head: dict[str, str], tmp_path: Path) -> None:
    """As `ray up` has it: with infra.spot beside Ray's head."""
    watch = subprocess.Popen(
        [sys.executable, "-m", "infra.spot"], env=head, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert driven(head, tmp_path, rows=0)["most"] == {"gpu-worker-on-demand": 1}
    finally:
        watch.terminate()
    told = [line.split(maxsplit=2)[2] for line in watch.communicate()[0].splitlines()]
    assert told[:2] == [
        "gpu-worker is unavailable",
        "gpu-worker was refused: InsufficientInstanceCapacity: there is no spot capacity",  # from Ray's own log
    ]
    assert watch.returncode == 0


@pytest.mark.parametrize("head", [ONE_LEFT], indirect=True, ids=[""])
def test_where_ec2_has_one_spot_node_of_two_the_other_comes_on_demand(head: dict[str, str], tmp_path: Path) -> None:
    """Asked for both at once, EC2 starts one and says nothing of the other, which the autoscaler then waits for."""
    watch = subprocess.Popen([sys.executable, "-m", "infra.spot"], env=head, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        assert driven(head, tmp_path, rows=0, gpus=2)["most"] == {"gpu-worker": 1, "gpu-worker-on-demand": 1}
    finally:
        watch.terminate()
        watch.wait()
