"""Rules of this project for cluster files, beyond Ray's schema; a rule yields one line per violation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from infra.checkout import EXPORTED

Config = dict[str, Any]
Rule = Callable[[Config], Iterator[str]]

ROLE = "resnet-ray-role"
"""Label of a node: "train", or "ingest" for a node without a GPU that decodes images."""
_LEAST_DISK_GB = 150  # container image, dependencies, and space for spilled objects
_SECRET = re.compile(r"AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|SECRET_ACCESS_KEY=\S|RAY_AUTH_TOKEN=\S")
_LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
_PACKAGES = "~/resnet-ray/infra/aws/packages.sh"
_PRUNE = "python3 ~/resnet-ray/infra/checkout.py ~/resnet-ray"
_HEAD_POLICY = Path(__file__).resolve().parent / "aws" / "head-policy.json"


def broken_rules(config: Config) -> list[str]:
    """Return one line per violation; `config` is the parsed YAML file, which is valid by Ray's schema."""
    if config["provider"]["type"] != "aws":
        return [line for rule in _ALWAYS for line in rule(config)]
    return list(_nodes_are_what_ec2_takes(config)) or [line for rule in (*_ALWAYS, *_ON_AWS) for line in rule(config)]


def _values(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, text) of every leaf."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _values(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list):
        for value in config:
            yield from _values(value, path)
    else:
        yield path, "" if config is None else str(config)


def _everything_is_set(config: Config) -> Iterator[str]:
    for path, value in _values(config.get("metadata", {}).get("set", {}), "metadata.set"):
        if not value or "SET-" in value:
            yield f"{path} is not set: it still says {value!r}"


def _has_no_secret(config: Config) -> Iterator[str]:
    for path, value in _values(config):
        if _SECRET.search(value):
            yield f"{path} holds a secret: nodes get secrets from an instance profile or a mounted file"


def _listens_on_loopback(config: Config) -> Iterator[str]:
    starts = " ".join(config.get("head_start_ray_commands", []))
    if "--dashboard-host=127.0.0.1" not in starts:
        yield (
            "head_start_ray_commands: `ray start` needs --dashboard-host=127.0.0.1; anyone who reaches the dashboard"
            " can run code"
        )
    for path, value in _values(config):
        if "0.0.0.0" in value:  # nosec B104
            yield f"{path} opens a server to every network: {value.strip()[:80]}"


def _token_is_mounted(config: Config) -> Iterator[str]:
    if not any(target.endswith("/.ray/auth_token") for target in config.get("file_mounts", {})):
        yield "file_mounts: ~/.ray/auth_token is missing; without it no node can join"


def _code_is_not_left_out(config: Config) -> Iterator[str]:
    for pattern in map(str, config.get("rsync_exclude", [])):
        if not pattern.startswith("/"):
            yield f"rsync_exclude: {pattern} also leaves out folders of that name below the root; write /{pattern}"


def _jobs_start_in_the_checkout(config: Config) -> Iterator[str]:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in config.get(key, []) if "ray start" in line]
        if not starts or not all(line.startswith("cd ~/resnet-ray && ") for line in starts):
            yield f"{key}: `ray start` must come after `cd ~/resnet-ray && `, the folder that jobs start in"


def _nodes_are_what_ec2_takes(config: Config) -> Iterator[str]:
    """Check nodes by botocore's description of RunInstances; `ray up` does so only when it requests a node."""
    from botocore.validate import ParamValidator

    request = _run_instances()
    for name, kind in config["available_node_types"].items():
        asked = {key: value for key, value in kind["node_config"].items() if key != "SubnetIds"}  # a key of Ray's
        report = ParamValidator().validate({**asked, "MinCount": 1, "MaxCount": 1}, request)
        if report.has_errors():
            yield f"available_node_types.{name}.node_config: {' '.join(report.generate_report().split())[:300]}"


@cache
def _run_instances() -> Any:
    from botocore.session import get_session

    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _head_computes_nothing(config: Config) -> Iterator[str]:
    """Check the head, which runs only drivers, MLflow and the autoscaler."""
    head = config["available_node_types"][config["head_node_type"]]
    if head.get("resources") != {"CPU": 0, "GPU": 0}:
        yield f"available_node_types.{config['head_node_type']}.resources must be {{CPU: 0, GPU: 0}}"
    if "InstanceMarketOptions" in head["node_config"]:
        yield (
            f"available_node_types.{config['head_node_type']} must not be a spot instance: the cluster ends with its"
            " head"
        )


def _workers_scale_from_zero(config: Config) -> Iterator[str]:
    for name, node_type in _workers(config):
        if node_type.get("min_workers", 0):
            yield f"available_node_types.{name}.min_workers must be 0: the autoscaler starts nodes when there is work"


def _spot_has_a_fallback(config: Config) -> Iterator[str]:
    workers = dict(_workers(config))
    spot = {name for name, kind in workers.items() if "InstanceMarketOptions" in kind["node_config"]}
    on_demand = [_machine(kind) for name, kind in workers.items() if name not in spot]
    for name in workers.keys() & spot:
        if _machine(workers[name]) not in on_demand:
            yield (
                f"available_node_types.{name} is spot, and no on-demand type has its resources, InstanceType and"
                " max_workers"
            )


def _spot_is_watched(config: Config) -> Iterator[str]:
    """Check for infra.spot: Ray's autoscaler itself never replaces a spot type by the on-demand type."""
    spot = [name for name, kind in _workers(config) if "InstanceMarketOptions" in kind["node_config"]]
    if spot and not any("python -m infra.spot" in line for line in config.get("head_start_ray_commands", [])):
        yield f"head_start_ray_commands: `python -m infra.spot` is missing; without it {spot[0]} has no fallback"


def _machine(kind: Config) -> tuple[Config, object, object]:
    return kind["resources"], kind["node_config"].get("InstanceType"), kind.get("max_workers")


def _ingest_is_labelled(config: Config) -> Iterator[str]:
    for name, kind in _workers(config):
        role = "train" if kind.get("resources", {}).get("GPU") else "ingest"
        if kind.get("labels", {}).get(ROLE) != role:
            yield f"available_node_types.{name}.labels must be {{{ROLE}: {role}}}: the label places data tasks"


def _nodes_are_hardened(config: Config) -> Iterator[str]:
    for name, kind in config["available_node_types"].items():
        where, node = f"available_node_types.{name}.node_config", kind["node_config"]
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{where}.MetadataOptions.HttpTokens must be required (IMDSv2)"
        if not node.get("IamInstanceProfile"):
            yield f"{where}.IamInstanceProfile is missing: nodes have no other credentials"
        disks = [disk.get("Ebs", {}) for disk in node.get("BlockDeviceMappings", [])]
        if not disks or not all(
            disk.get("Encrypted") and disk.get("VolumeSize", 0) >= _LEAST_DISK_GB for disk in disks
        ):
            yield f"{where}.BlockDeviceMappings must have one encrypted disk of at least {_LEAST_DISK_GB} GB"


def _regions_agree(config: Config) -> Iterator[str]:
    provider, options = config["provider"], config.get("docker", {}).get("run_options", [])
    region, zone = str(provider.get("region", "")), str(provider.get("availability_zone", ""))
    if f"-e AWS_DEFAULT_REGION={region}" not in options:
        yield f"docker.run_options: AWS_DEFAULT_REGION is not provider.region, which is {region}"
    if not zone.startswith(region) or "," in zone:
        yield f"provider.availability_zone must be one zone of {region}, got {zone!r}"


def _image_has_the_locks_ray(config: Config) -> Iterator[str]:
    """Check for Ray's own image, or a user's image whose tag says that it has the same Ray."""
    locked = re.search(r"^ray==(\S+)", _LOCK.read_text(), re.MULTILINE)
    assert locked
    ray = re.escape(locked[1])
    docker = config.get("docker", {})
    for key in ("image", "head_image", "worker_image"):
        image = str(docker.get(key, ""))
        own = rf"(?!rayproject/)[\w./:-]+:[\w.-]*-ray{ray}"
        if (key == "image" or image) and not re.fullmatch(rf"rayproject/ray:{ray}-py3\d+(-gpu|-cu\d+)?|{own}", image):
            yield (
                f"docker.{key} must be rayproject/ray:{locked[1]}-py3xx-gpu, the Ray of requirements.lock, or an image"
                f" of your own with a tag that ends with -ray{locked[1]}; got {image!r}"
            )


def _packages_are_the_locks(config: Config) -> Iterator[str]:
    if f"bash {_PACKAGES}" not in config.get("setup_commands", []):
        yield f"setup_commands: `bash {_PACKAGES}` is missing; it installs requirements-runtime.lock by its hashes"


def _code_is_an_exported_tree(config: Config) -> Iterator[str]:
    """Check the mounts: Ray reads every file of a mounted folder, and rsync deletes nothing on the nodes."""
    mounts = config.get("file_mounts", {})
    whole = [target for target, source in mounts.items() if Path(source).resolve() == _LOCK.parent]
    for target in whole:
        yield f"file_mounts: {target} is the whole checkout; mount {EXPORTED}, which `infra/cluster.py export` writes"
    if EXPORTED in mounts.values() and _PRUNE not in config.get("setup_commands", []):
        yield f"setup_commands: `{_PRUNE}` is missing: files deleted in the checkout stay on the nodes"


def _head_may_do_what_the_file_asks(config: Config) -> Iterator[str]:
    """Check the head's policy, which names the cluster, and the instance types and placement group of its workers."""
    policy = _HEAD_POLICY.read_text()
    statements = json.loads(policy)["Statement"]
    conditions = [statement.get("Condition", {}).get("StringEquals", {}) for statement in statements]
    names = {condition.get("aws:ResourceTag/ray-cluster-name") for condition in conditions} - {None}
    for name in names - {config["cluster_name"]}:
        yield f"cluster_name: by {_HEAD_POLICY.name} the head may end nodes of {name!r} only: change it too"
    may_start = {kind for condition in conditions for kind in condition.get("ec2:InstanceType", [])}
    groups = set(re.findall(r':placement-group/([^"]+)"', policy))
    for name, kind in _workers(config):
        if (wanted := kind["node_config"].get("InstanceType")) not in may_start:
            yield f"available_node_types.{name}: by {_HEAD_POLICY.name} the head may not start {wanted}: add it there"
        group = kind["node_config"].get("Placement", {}).get("GroupName")
        if group and group not in groups:
            yield (
                f"available_node_types.{name}: by {_HEAD_POLICY.name} the head may not start nodes in the placement"
                f" group {group}: call it {' or '.join(sorted(groups))}, or add it there"
            )


def _orphans_end(config: Config) -> Iterator[str]:
    for name, kind in _workers(config):
        if kind["node_config"].get("InstanceInitiatedShutdownBehavior") != "terminate":
            yield (
                f"available_node_types.{name}.node_config.InstanceInitiatedShutdownBehavior must be terminate: a"
                " worker without a head shuts down, and without this setting it stays a stopped machine with a disk"
            )
    if not any("infra/aws/orphan.sh install" in line for line in config.get("initialization_commands", [])):
        yield "initialization_commands: infra/aws/orphan.sh is missing: nodes without Ray would cost money for ever"


def _registry_outlives_the_head(config: Config) -> Iterator[str]:
    options = config.get("docker", {}).get("head_run_options") or []
    if not any(str(option).startswith("-v ") and str(option).endswith(":/home/ray/mlflow") for option in options):
        yield (
            "docker.head_run_options: -v /home/ubuntu/mlflow:/home/ray/mlflow is missing: MLflow's database would be"
            " lost with the container"
        )
    wanted = f"--backup {config['cluster_name']}"
    starts = [line for line in config.get("head_start_ray_commands", []) if "infra.head" in line]
    if not any(wanted in " ".join(line.split()) for line in starts):
        yield (
            f"head_start_ray_commands: `python -m infra.head` needs {wanted}: without backups, MLflow's database is"
            " lost with the disk"
        )


def _nodes_are_asked_for_one_by_one(config: Config) -> Iterator[str]:
    options = config.get("docker", {}).get("head_run_options") or []
    if "-e AUTOSCALER_MAX_LAUNCH_BATCH=1" not in options:
        yield (
            "docker.head_run_options: -e AUTOSCALER_MAX_LAUNCH_BATCH=1 is missing: EC2 may start a part of a batch,"
            " while the autoscaler waits for the rest"
        )
    if not any(str(each).startswith("-e RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S=") for each in options):
        yield (
            "docker.head_run_options: -e RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S=120 is missing: a request"
            " that EC2 does not answer would be repeated after ten minutes, while the other nodes cost money"
        )


def _drivers_know_mlflow(config: Config) -> Iterator[str]:
    options = config.get("docker", {}).get("head_run_options") or []
    if not any(option.startswith("-e MLFLOW_TRACKING_URI=") for option in map(str, options)):
        yield "docker.head_run_options: -e MLFLOW_TRACKING_URI=… is missing: runs would go to a file of the job"


def _containers_ask_for_the_token(config: Config) -> Iterator[str]:
    if "-e RAY_AUTH_MODE=token" not in config.get("docker", {}).get("run_options", []):
        yield "docker.run_options: -e RAY_AUTH_MODE=token is missing"


def _workers(config: Config) -> Iterator[tuple[str, Config]]:
    for name, kind in config["available_node_types"].items():
        if name != config["head_node_type"]:
            yield name, kind


_ALWAYS: tuple[Rule, ...] = (
    _everything_is_set,
    _has_no_secret,
    _listens_on_loopback,
    _token_is_mounted,
    _code_is_not_left_out,
    _code_is_an_exported_tree,
    _jobs_start_in_the_checkout,
)
_ON_AWS: tuple[Rule, ...] = (
    _head_computes_nothing,
    _workers_scale_from_zero,
    _spot_has_a_fallback,
    _spot_is_watched,
    _ingest_is_labelled,
    _nodes_are_hardened,
    _regions_agree,
    _image_has_the_locks_ray,
    _packages_are_the_locks,
    _orphans_end,
    _registry_outlives_the_head,
    _nodes_are_asked_for_one_by_one,
    _containers_ask_for_the_token,
    _drivers_know_mlflow,
    _head_may_do_what_the_file_asks,
)
