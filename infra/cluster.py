"""Connect to Ray: join the cluster that RAY_ADDRESS or a Ray job names, or start a local one for this process.

The command checks cluster files against Ray's schema and this project's rules, and exports the code that `ray up`
mounts:

    python infra/cluster.py check FILE…
    python infra/cluster.py export
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra.capacity import cluster_total, unknown_may_come
from infra.checkout import EXPORTED, LIST, export
from infra.cluster_rules import broken_rules
from infra.errors import UserError, run
from infra.local_ray import start as local
from infra.ray_start import check_head
from infra.storage import environment_of_s3

# Ray counts one CPU per core by default. Data tasks need CPUs next to the workers even on the smallest machine.
_LEAST_LOCAL_CPUS = 4
# Train's default is to look for preempted nodes every 5 s, and the whole notice may be 25 s.
_WATCHED = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
_ALIVE = 0  # GcsNodeInfo.GcsNodeState.ALIVE
# Ray warns of more processes than cores, which is normal for a study of several trials. Ray reads it at import, too.
_SILENCED = {"RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started on node"}
_ROOT = str(Path(__file__).resolve().parents[1])


def connect(
    *,
    min_cpus: int,
    gpus: int = 0,
    settings: str = "run.num_workers or run.cpus_per_worker",
    modules: Sequence[str] = (),
) -> None:
    """Join or start Ray and check that it is large enough.

    Args:
        min_cpus: logical CPUs that the caller will hold at once.
        gpus: GPUs that the caller will hold at once.
        settings: names of the settings to lower if the cluster has too few CPUs.
        modules: those of `warm_up`, if the caller did not call it before.

    Raises:
        UserError: no cluster answers at RAY_ADDRESS, or the cluster is too small even with every node that its
            autoscaler may start.
    """
    _set_environment()
    import ray

    if not ray.is_initialized():
        if _is_local() and min_cpus > local_cpus():  # known before it starts
            raise _too_small("CPU", min_cpus, str(local_cpus()), settings)
        _start(ray, modules)
    for kind, needed in (("CPU", min_cpus), ("GPU", gpus)):
        have, most = int(ray.cluster_resources().get(kind, 0)), cluster_total(kind)
        if most < needed and not unknown_may_come():
            ray.shutdown()
            available = str(have) if most == have else f"{most}, with every node that may come"
            raise _too_small(kind, needed, available, settings)


def warm_up(modules: Sequence[str]) -> None:
    """Start to import modules for the workers of a local Ray, in another process, while the command goes on.

    Call this as early as it is known that `connect` will follow. It does nothing if the command will join a cluster, or
    has a Ray already.

    Args:
        modules: modules that several workers will need, in the order to import them; Ray Data comes first by itself.
    """
    ray = sys.modules.get("ray")
    if _is_local() and not (ray and ray.is_initialized()):
        _set_environment()
        local.warm_up(modules)


def _is_local() -> bool:
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def local_cpus(cores: int | None = None) -> int:
    """Return the logical CPUs of the Ray that a command starts on a machine of so many cores; None = this machine."""
    return max(_LEAST_LOCAL_CPUS, cores or os.cpu_count() or 1)


def _too_small(kind: str, needed: int, available: str, settings: str) -> UserError:
    remedy = f"lower {settings if kind == 'CPU' else 'run.num_workers'}, or join a larger cluster by RAY_ADDRESS"
    if kind == "GPU" and available == "0":
        available, remedy = "none", "set run.use_gpu=false, or join a cluster that has them by RAY_ADDRESS"
    return UserError(f"the run needs {needed} {kind}s at once and the cluster has {available}: {remedy}")


def _set_environment() -> None:
    """Set what Ray reads at its import, and what its processes inherit."""
    # a thread that still reads from a Ray that was shut down must not start another one
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    for name, value in _SILENCED.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.update(local.LOOPBACK)
    # Ray's processes import this checkout, from any working directory of the command.
    paths = [_ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    for name, value in environment_of_s3().items():
        os.environ.setdefault(name, value)


def _start(ray, modules: Sequence[str] = ()) -> None:  # type: ignore[no-untyped-def]
    if _is_local():
        local.start(ray, local_cpus(), modules)
    else:
        _join(ray, os.environ["RAY_ADDRESS"])


def _join(ray, address: str) -> None:  # type: ignore[no-untyped-def]
    from ray._private.services import canonicalize_bootstrap_address

    for name, value in _WATCHED.items():
        os.environ.setdefault(name, value)
    try:
        found = canonicalize_bootstrap_address(address) if address == "auto" else address
        if found:
            check_head(found)
        ray.init(logging_level="ERROR", log_to_driver=False, runtime_env=_code())
    except UserError:
        raise
    except Exception as error:  # of any class: Ray's and those of its libraries
        hint = "correct RAY_ADDRESS, or unset it to start Ray on this machine"
        raise UserError(
            f"no Ray cluster can be joined at {address} (RAY_ADDRESS): {_line(str(error))}: {hint}"
        ) from error


class OwnNode:
    """The Ray node of this machine, seen by a process that is not part of Ray."""

    def __init__(self) -> None:
        """Find the node in Ray's record of this machine; raise UserError if there is none."""
        from ray._private.services import canonicalize_bootstrap_address
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled, and without stubs

        address = canonicalize_bootstrap_address(None)  # type: ignore[arg-type]  # None = this machine's cluster
        if address is None:
            raise UserError("there is no Ray node on this machine")
        self._gcs = GcsClient(address=address)
        own = {each.address for interface in psutil.net_if_addrs().values() for each in interface}
        nodes = self._gcs.get_all_node_info().items()
        found = [node_id for node_id, node in nodes if node.state == _ALIVE and node.node_manager_address in own]
        if not found:
            raise UserError(f"the Ray cluster at {address} has no node on this machine")
        self.node_id: str = found[-1].hex()

    def drain(self, seconds: float) -> bool:
        """Drain this node, which is taken away in `seconds`; return whether Ray's head agreed."""
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]  # generated

        deadline_ms = round((time.time() + seconds) * 1000)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        message = "the machine is taken away"
        agreed: bool = self._gcs.drain_node(self.node_id, reason, message, deadline_ms)[0]
        return agreed


def failed_launches(address: str) -> dict[str, float]:
    """Return the node types that the autoscaler at `address` recently failed to start, with the Unix time."""
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.exceptions import RpcError

    try:
        failed = get_cluster_status(address).failed_launches
    except RpcError:  # a head that is busy, or about to end
        return {}
    return {each.ray_node_type_name: float(each.failed_ts_s or 0) for each in failed}


def ray_process(name: str) -> int | None:
    """Return the pid of this user's process `name`: "raylet" on a node, "gcs_server" on a head; None without one."""
    found = (process.info for process in psutil.process_iter(["pid", "name", "uids"]))
    return next((int(each["pid"]) for each in found if each["name"] == name and each["uids"].real == os.getuid()), None)


def in_job() -> bool:
    """Return whether this process is the entry point of a Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _code() -> dict[str, object] | None:
    """Return the runtime environment with this checkout's path; None in a job, whose cluster has the code already."""
    return None if in_job() else {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"], **environment_of_s3()}}


def wrong_with(file: Path) -> list[str]:
    """Return one line per fault of a cluster file, by Ray's schema, else Ray's own check, else this project's rules.

    Raises:
        UserError: the file does not exist, or does not hold a YAML mapping.
    """
    config = _mapping(file)
    if wrong := _wrong_by_schema(config) or _wrong_by_ray(config):
        return wrong
    return broken_rules(config)


def _mapping(file: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is no cluster file: it must be a mapping, as ray-cluster.yaml is")
    return config


def _wrong_by_schema(config: dict[str, Any]) -> list[str]:
    import ray.autoscaler
    from jsonschema import Draft7Validator

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    # the schema lacks this key of the provider `local`
    known = {key: value for key, value in config.items() if key != "min_workers"}
    found = sorted(Draft7Validator(schema).iter_errors(known), key=lambda error: list(map(str, error.absolute_path)))
    return [f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {_line(error.message)}" for error in found]


def _wrong_by_ray(config: dict[str, Any]) -> list[str]:
    """Return the error that would stop `ray up`: Ray fills in defaults and checks more than its schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # Ray's code on a user's data: any exception, even a TypeError, is about the file
        return [f"`ray up` would reject it: {_line(str(error))}"]
    return []


def _line(text: str) -> str:
    return " ".join(text.split())[:200]


def main() -> None:
    """Check cluster files, or export the code for the nodes.

    Exit with status 1 if a file has a fault, and 2 if a file cannot be read or the export fails.
    """
    parser = argparse.ArgumentParser(prog="python infra/cluster.py", description="Check cluster files, export code.")
    verbs = parser.add_subparsers(required=True, metavar="{check,export}", dest="verb")
    check = verbs.add_parser("check", help="check files against Ray's schema and this project's rules")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    verbs.add_parser("export", help=f"copy what git tracks to {EXPORTED}, which `ray up` mounts")
    arguments = parser.parse_args()
    if arguments.verb == "export":
        _export()
        return
    status = 0
    for file in arguments.files:
        wrong = wrong_with(file)
        status |= bool(wrong)
        sys.stdout.writelines(f"{file}: {line}\n" for line in wrong or ["ok"])
    sys.exit(status)


def _export() -> None:
    try:
        folder = export()
    except ValueError as error:
        raise UserError(str(error)) from error
    files = (folder / LIST).read_text().splitlines()
    total = sum((folder / name).stat().st_size for name in files)
    sys.stdout.write(f"{EXPORTED}: {len(files)} files, {total / 1e6:.1f} MB\n")


if __name__ == "__main__":
    run(main)
