"""What this project asks of a cluster file beyond Ray's schema; each rule yields one line for what breaks it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

Config = dict[str, Any]
Rule = Callable[[Config], Iterator[str]]

ROLE = "resnet-ray-role"
"""Label of a node: "train", or "ingest" for one that has no GPU and decodes images."""
_LEAST_DISK_GB = 150  # images, dependencies, and room to spill
_SECRET = re.compile(r"AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|SECRET_ACCESS_KEY=\S|RAY_AUTH_TOKEN=\S")
_LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
_HEAD_POLICY = Path(__file__).resolve().parent / "aws" / "head-policy.json"


def broken_rules(config: Config) -> list[str]:
    """One line each; `config` is the file as YAML reads it, and Ray's schema has nothing against it."""
    if config["provider"]["type"] != "aws":
        return [line for rule in _ALWAYS for line in rule(config)]
    return list(_nodes_are_what_ec2_takes(config)) or [line for rule in (*_ALWAYS, *_ON_AWS) for line in rule(config)]


def _values(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf as text, with where it stands."""
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
            yield f"{path} holds a secret: nodes get theirs from an instance profile or a file that is mounted"


def _listens_on_loopback(config: Config) -> Iterator[str]:
    starts = " ".join(config.get("head_start_ray_commands", []))
    if "--dashboard-host=127.0.0.1" not in starts:
        yield "head_start_ray_commands: `ray start` needs --dashboard-host=127.0.0.1; whoever reaches it runs code"
    for path, value in _values(config):
        if "0.0.0.0" in value:  # nosec B104
            yield f"{path} opens a server to every network: {value.strip()[:80]}"


def _token_is_mounted(config: Config) -> Iterator[str]:
    if not any(target.endswith("/.ray/auth_token") for target in config.get("file_mounts", {})):
        yield "file_mounts: ~/.ray/auth_token is missing, and without it no node can join"


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
    """By botocore's own description of RunInstances, as `ray up` would find out once it asks for a node."""
    from botocore.validate import ParamValidator

    request = _run_instances()
    for name, kind in config["available_node_types"].items():
        asked = {key: value for key, value in kind["node_config"].items() if key != "SubnetIds"}  # Ray's own
        report = ParamValidator().validate({**asked, "MinCount": 1, "MaxCount": 1}, request)
        if report.has_errors():
            yield f"available_node_types.{name}.node_config: {' '.join(report.generate_report().split())[:300]}"


@cache
def _run_instances() -> Any:
    from botocore.session import get_session

    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _head_computes_nothing(config: Config) -> Iterator[str]:
    """Drivers live there, with MLflow and the autoscaler."""
    head = config["available_node_types"][config["head_node_type"]]
    if head.get("resources") != {"CPU": 0, "GPU": 0}:
        yield f"available_node_types.{config['head_node_type']}.resources must be {{CPU: 0, GPU: 0}}"
    if "InstanceMarketOptions" in head["node_config"]:
        yield f"available_node_types.{config['head_node_type']} must not be a spot instance: with it the cluster ends"


def _workers_scale_from_zero(config: Config) -> Iterator[str]:
    for name, node_type in _workers(config):
        if node_type.get("min_workers", 0):
            yield f"available_node_types.{name}.min_workers must be 0: nodes come with work"


def _spot_has_a_fallback(config: Config) -> Iterator[str]:
    gpu = {name: kind for name, kind in _workers(config) if kind.get("resources", {}).get("GPU")}
    spot = {name for name, kind in gpu.items() if "InstanceMarketOptions" in kind["node_config"]}
    for name in spot:
        if _machine(gpu[name]) not in [_machine(gpu[other]) for other in gpu.keys() - spot]:
            yield f"available_node_types.{name} is spot, and no on-demand type has its resources and InstanceType"


def _spot_is_watched(config: Config) -> Iterator[str]:
    """Ray's autoscaler itself never takes the on-demand type in the place of a spot one."""
    spot = [name for name, kind in _workers(config) if "InstanceMarketOptions" in kind["node_config"]]
    if spot and not any("python -m infra.spot" in line for line in config.get("head_start_ray_commands", [])):
        yield f"head_start_ray_commands: `python -m infra.spot` is missing, and without it {spot[0]} has no fallback"


def _machine(kind: Config) -> tuple[Config, object]:
    return kind["resources"], kind["node_config"].get("InstanceType")


def _ingest_is_labelled(config: Config) -> Iterator[str]:
    for name, kind in _workers(config):
        role = "train" if kind.get("resources", {}).get("GPU") else "ingest"
        if kind.get("labels", {}).get(ROLE) != role:
            yield f"available_node_types.{name}.labels must be {{{ROLE}: {role}}}: it says where data tasks go"


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
            yield f"{where}.BlockDeviceMappings: one encrypted disk of {_LEAST_DISK_GB} GB at least"


def _regions_agree(config: Config) -> Iterator[str]:
    provider, options = config["provider"], config.get("docker", {}).get("run_options", [])
    region, zone = str(provider.get("region", "")), str(provider.get("availability_zone", ""))
    if f"-e AWS_DEFAULT_REGION={region}" not in options:
        yield f"docker.run_options: AWS_DEFAULT_REGION is not provider.region, which is {region}"
    if not zone.startswith(region) or "," in zone:
        yield f"provider.availability_zone must be one zone of {region}, got {zone!r}"


def _image_is_the_locks(config: Config) -> Iterator[str]:
    locked = re.search(r"^ray==(\S+)", _LOCK.read_text(), re.MULTILINE)
    assert locked
    image = config.get("docker", {}).get("image", "")
    if not re.fullmatch(rf"rayproject/ray:{re.escape(locked[1])}-py3\d+(-gpu|-cu\d+)?", image):
        yield f"docker.image must be rayproject/ray:{locked[1]}-py3xx-gpu, the Ray of requirements.lock; got {image!r}"
    installs = " ".join(config.get("setup_commands", []))
    if "--require-hashes" not in installs or "--compile-bytecode" not in installs:
        yield "setup_commands: install requirements.lock with --require-hashes and --compile-bytecode"


def _head_may_end_its_nodes(config: Config) -> Iterator[str]:
    """Its policy goes by the name that Ray tags nodes with; nodes of another name would run, and cost, for ever."""
    for statement in json.loads(_HEAD_POLICY.read_text())["Statement"]:
        name = statement.get("Condition", {}).get("StringEquals", {}).get("aws:ResourceTag/ray-cluster-name")
        if name and name != config["cluster_name"]:
            yield f"cluster_name: by {_HEAD_POLICY.name} the head may end nodes of {name!r} only: change it too"
            return


def _drivers_know_mlflow(config: Config) -> Iterator[str]:
    options = config.get("docker", {}).get("head_run_options") or []
    if not any(option.startswith("-e MLFLOW_TRACKING_URI=") for option in map(str, options)):
        yield "docker.head_run_options: -e MLFLOW_TRACKING_URI=… is missing, and runs would go to a file of the job's"


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
    _image_is_the_locks,
    _containers_ask_for_the_token,
    _drivers_know_mlflow,
    _head_may_end_its_nodes,
)
