"""`ray-cluster.yaml` is what Ray's own check accepts and what our rules ask for; no network, no cloud."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "ray-cluster.yaml"

Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    loaded: Config = yaml.safe_load(FILE.read_text())
    return loaded


def node_configs(config: Config) -> Iterator[tuple[str, Config]]:
    for name, node_type in config["available_node_types"].items():
        yield name, node_type["node_config"]


def test_ray_accepts_it(config: Config) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    assert not [line for line in prepared["head_setup_commands"] if "pip install 'boto3" in line], "past the lock"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.update(idle_timeout=5),
        lambda config: config["available_node_types"]["gpu-worker"].update(min_worker=1),
        lambda config: config["available_node_types"]["gpu-worker"]["resources"].update(GPU="1"),
        lambda config: config["docker"].update(images="rayproject/ray"),
    ],
)
def test_ray_refuses_what_its_schema_does_not_know(config: Config, spoil: Callable[[Config], None]) -> None:
    spoil(config)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config))


def test_the_image_has_the_ray_and_the_python_of_the_lock(config: Config) -> None:
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None and locked[1] == ray.__version__
    assert config["docker"]["image"] == f"rayproject/ray:{locked[1]}-py311-gpu"


def test_dependencies_come_from_the_lock_alone_and_are_compiled(config: Config) -> None:
    installs = [line for line in config["setup_commands"] if "install" in line]
    assert "uv==" in installs[0] and "requirements.lock" in installs[0]
    assert "--require-hashes" in installs[1] and "--compile-bytecode" in installs[1]
    assert installs[1].endswith("-r ~/resnet-ray/requirements.lock") and len(installs) == len(config["setup_commands"])


def test_the_head_trains_nothing_and_stays(config: Config) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_gpu_workers_are_spot_and_come_from_zero(config: Config) -> None:
    worker = config["available_node_types"]["gpu-worker"]
    assert worker["resources"]["GPU"] == 1
    assert worker["min_workers"] == 0 < worker["max_workers"] <= config["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_every_node_has_a_profile_imdsv2_and_an_encrypted_disk(config: Config) -> None:
    for name, node in node_configs(config):
        assert node["MetadataOptions"]["HttpTokens"] == "required", name
        assert node["IamInstanceProfile"]["Name"].startswith("resnet-ray-"), name
        disk = node["BlockDeviceMappings"][0]["Ebs"]
        assert disk["Encrypted"] and disk["VolumeSize"] >= 150, name


def test_token_authentication_reaches_every_container(config: Config) -> None:
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_servers_listen_on_loopback_only(config: Config) -> None:
    starts = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in starts and "mlflow server --host 127.0.0.1" in starts
    assert "0.0.0.0" not in FILE.read_text()


def test_no_secret_stands_in_the_file() -> None:
    assert not re.search(r"AKIA|ASIA|SECRET|ACCESS_KEY|RAY_AUTH_TOKEN\b", FILE.read_text())


def test_both_mounts_and_start_commands_name_the_folder_that_jobs_start_in(config: Config) -> None:
    assert config["file_mounts"]["/home/ray/resnet-ray"] == "."
    for start in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert start.startswith("cd ~/resnet-ray && ray start ")
