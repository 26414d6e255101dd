"""Cluster files are what Ray's own check accepts and what our rules ask for; no network, no cloud."""

from __future__ import annotations

import copy
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.cluster import wrong_with
from infra.cluster_rules import broken_rules

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "ray-cluster.yaml"
GPU = "available_node_types.gpu-worker"

Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    loaded: Config = yaml.safe_load(FILE.read_text().replace("SET-YOUR-BUCKET", "my-bucket"))
    return loaded


def kinds(config: Config) -> Config:
    found: Config = config["available_node_types"]
    return found


def test_the_command_names_what_is_not_set() -> None:
    command = [sys.executable, "infra/cluster.py", "check", "ray-cluster.yaml", "infra/local-cluster.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines() == [
        "ray-cluster.yaml: metadata.set.storage is not set: it still says '-e RESNET_RAY_STORAGE=s3://SET-YOUR-BUCKET'",
        "infra/local-cluster.yaml: ok",
    ]
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot read {file}: No such file or directory"),
        ("", "{file} is no cluster file: it must be a mapping, as ray-cluster.yaml is"),
        ("a: [1", "{file} is not YAML: while parsing a flow sequence"),
        ("\udcff", "{file} is not YAML: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_no_cluster_file_is_told_in_one_line(tmp_path: Path, content: str | None, told: str) -> None:
    file = tmp_path / "cluster.yaml"
    if content is not None:
        file.write_text(content, errors="surrogateescape")
    command = [sys.executable, "infra/cluster.py", "check", str(file)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {told.format(file=file)}")


@pytest.mark.parametrize("name", ["ray-cluster.yaml", "infra/local-cluster.yaml"])
def test_whatever_stands_in_a_place_of_it_is_judged(tmp_path: Path, name: str) -> None:
    """No traceback, wherever a value is left out or of another kind."""
    whole = yaml.safe_load((ROOT / name).read_text().replace("SET-YOUR-BUCKET", "my-bucket"))
    file, unnoticed = tmp_path / "cluster.yaml", 0
    for path, value in zip(places(whole), itertools.cycle([None, "x", 3, [], {}, [3], {"a": None}])):
        changed = copy.deepcopy(whole)
        place = reduce(getitem, path[:-1], changed)
        place[path[-1]] = value
        file.write_text(yaml.safe_dump(changed))
        lines = wrong_with(file)
        assert all(line and "\n" not in line for line in lines), path
        unnoticed += lines == []
    assert unnoticed < len(list(places(whole))) / 2


def places(config: Any) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a file, but for `metadata`, which Ray ignores."""
    below = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in below:
        if key != "metadata":
            yield (key,)
            yield from ((key, *rest) for rest in places(value))


def test_with_the_bucket_set_nothing_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(FILE.read_text().replace("SET-YOUR-BUCKET", "my-bucket"))
    assert wrong_with(file) == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda config: config.update(idle_timeout=5), "'idle_timeout' was unexpected"),
        (lambda config: kinds(config)["gpu-worker"].update(min_worker=1), "'min_worker' was unexpected"),
        (lambda config: kinds(config)["gpu-worker"]["resources"].update(GPU="1"), "'1' is not of type 'integer'"),
        (lambda config: config["docker"].update(images="rayproject/ray"), "'images' was unexpected"),
        (lambda config: config["docker"].pop("image"), "`ray up` would reject it: Must provide a container & image"),
        (lambda config: config.update(head_node_type="heads"), "`head_node_type` must be one of"),
        (
            lambda config: kinds(config)["cpu-worker"]["node_config"].update(InstanceTyp="c7i.large"),
            'cpu-worker.node_config: Unknown parameter in input: "InstanceTyp"',
        ),
        (
            lambda config: kinds(config)["gpu-worker"]["node_config"].update(MetadataOptions="required"),
            "gpu-worker.node_config: Invalid type for parameter MetadataOptions",
        ),
    ],
)
def test_what_ray_or_ec2_does_not_take_is_named(
    config: Config, tmp_path: Path, spoil: Callable[[Config], None], told: str
) -> None:
    spoil(config)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    (line,) = wrong_with(file)
    assert told in line


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda config: kinds(config)["head"]["resources"].update(CPU=8), "head.resources must be {CPU: 0, GPU: 0}"),
        (
            lambda config: kinds(config)["head"]["node_config"].update(InstanceMarketOptions={"MarketType": "spot"}),
            "head must not be a spot instance",
        ),
        (lambda config: kinds(config)["gpu-worker"].update(min_workers=1), f"{GPU}.min_workers must be 0"),
        (lambda config: kinds(config).pop("gpu-worker-on-demand"), f"{GPU} is spot, and no on-demand type"),
        (lambda config: kinds(config)["cpu-worker"].update(max_workers=4), "cpu-worker is spot, and no on-demand type"),
        (lambda config: config["head_start_ray_commands"].pop(), "`python -m infra.spot` is missing"),
        (lambda config: config.update(cluster_name="other"), "the head may end nodes of 'resnet-ray' only"),
        (lambda config: config["docker"].update(head_run_options=[]), "-e MLFLOW_TRACKING_URI=… is missing"),
        (
            lambda config: config["docker"].update(head_run_options=[]),
            "-v /home/ubuntu/mlflow:/home/ray/mlflow is missing",
        ),
        (lambda config: config["docker"].update(head_run_options=[]), "AUTOSCALER_MAX_LAUNCH_BATCH=1 is missing"),
        (lambda config: config["docker"].update(head_run_options=[]), "REQUEST_STATUS_TIMEOUT_S=120 is missing"),
        (
            lambda config: config["head_start_ray_commands"].__setitem__(2, "python -m infra.head --mlflow ~/mlflow"),
            "`python -m infra.head` needs --backup resnet-ray",
        ),
        (
            lambda config: kinds(config)["gpu-worker"]["node_config"].update(InstanceType="p5.48xlarge"),
            f"{GPU}: by head-policy.json the head may not start p5.48xlarge",
        ),
        (
            lambda config: kinds(config)["gpu-worker"]["node_config"].update(Placement={"GroupName": "other"}),
            "may not start nodes in the placement group other: call it resnet-ray",
        ),
        (
            lambda config: kinds(config)["cpu-worker"]["node_config"].pop("InstanceInitiatedShutdownBehavior"),
            "InstanceInitiatedShutdownBehavior must be terminate",
        ),
        (lambda config: config["initialization_commands"].pop(1), "infra/aws/orphan.sh is missing"),
        (lambda config: config["setup_commands"].pop(), "`bash ~/resnet-ray/infra/aws/packages.sh` is missing"),
        (lambda config: config["setup_commands"].pop(0), "files deleted in the checkout stay on the nodes"),
        (
            lambda config: config["file_mounts"].update({"/home/ray/resnet-ray": "."}),
            "/home/ray/resnet-ray is the whole checkout; mount build/ray-up",
        ),
        (
            lambda config: config["docker"].update(image="example.org/me/resnet-ray:1-ray2.59.0"),
            "or an image of your own with a tag that ends with -ray",
        ),
        (
            lambda config: kinds(config)["cpu-worker"].pop("labels"),
            "cpu-worker.labels must be {resnet-ray-role: ingest}",
        ),
        (
            lambda config: kinds(config)["gpu-worker"]["node_config"]["MetadataOptions"].update(HttpTokens="optional"),
            "MetadataOptions.HttpTokens must be required",
        ),
        (
            lambda config: kinds(config)["gpu-worker"]["node_config"].pop("IamInstanceProfile"),
            "IamInstanceProfile is missing",
        ),
        (
            lambda config: kinds(config)["gpu-worker"]["node_config"].update(BlockDeviceMappings=[]),
            "one encrypted disk",
        ),
        (lambda config: config["provider"].update(region="eu-west-1"), "AWS_DEFAULT_REGION is not provider.region"),
        (lambda config: config["provider"].update(availability_zone="us-east-1a,us-east-1b"), "must be one zone"),
        (lambda config: config["docker"].update(image="rayproject/ray:latest-gpu"), "the Ray of requirements.lock"),
        (
            lambda config: config["docker"]["run_options"].remove("-e RAY_AUTH_MODE=token"),
            "RAY_AUTH_MODE=token is missing",
        ),
        (lambda config: config["file_mounts"].pop("/home/ray/.ray/auth_token"), "~/.ray/auth_token is missing"),
        (
            lambda config: config["head_start_ray_commands"].append("serve --host 0.0.0.0"),
            "opens a server to every network",
        ),
        (lambda config: config["rsync_exclude"].append("data"), "rsync_exclude: data also leaves out folders"),
        (lambda config: config["setup_commands"].append("export AWS_SECRET_ACCESS_KEY=abc"), "holds a secret"),
        (
            lambda config: config["worker_start_ray_commands"].__setitem__(1, "ray start"),
            "must come after `cd ~/resnet-ray",
        ),
    ],
)
def test_what_our_rules_forbid_is_named(config: Config, spoil: Callable[[Config], None], told: str) -> None:
    assert broken_rules(config) == []
    spoil(yaml_copy := yaml.safe_load(yaml.safe_dump(config, default_flow_style=False)))
    assert any(told in line for line in broken_rules(yaml_copy)), broken_rules(yaml_copy)


def test_nodes_may_be_asked_for_side_by_side(config: Config, tmp_path: Path) -> None:
    """In EC2's placement group, whose name the head's policy has."""
    for name in ("gpu-worker", "gpu-worker-on-demand"):
        kinds(config)[name]["node_config"]["Placement"] = {"GroupName": "resnet-ray"}
    assert broken_rules(config) == []
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    assert wrong_with(file) == []


@pytest.mark.parametrize(
    "image",
    [
        "123456789012.dkr.ecr.us-east-1.amazonaws.com/resnet-ray:0.1.0-ray2.60.0",
        "ghcr.io/me/resnet-ray:2026-11-30-ray2.60.0",
        "localhost:5000/resnet-ray:x-ray2.60.0",
    ],
)
def test_an_image_of_ones_own_with_the_locks_ray_is_taken(config: Config, image: str) -> None:
    config["docker"]["image"] = image
    assert broken_rules(config) == []


def test_the_kuberay_manifests_name_such_an_image(config: Config) -> None:
    text = (ROOT / "infra/kuberay/raycluster.yaml").read_text()
    config["docker"]["image"] = re.findall(r"SET-YOUR-REGISTRY(\S+)", text)[0].join(["example.org", ""])
    assert broken_rules(config) == []


def test_the_runtime_environment_holds_no_secret() -> None:
    text = (ROOT / "infra/runtime_env.yaml").read_text()
    assert yaml.safe_load(text).keys() == {"excludes", "env_vars"}
    assert not re.search(r"AKIA|ASIA|ACCESS_KEY|TOKEN=", text)
