"""`ray up -y ray-cluster.yaml` against an EC2 and IAM that are moto's: what the API was asked for, up to node launch.

No machine comes of it, so what a node does after its launch is not shown here; `tests/cluster/test_up.py` shows that
on machines of our own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

moto = pytest.importorskip("moto", reason="the package moto is not installed")

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
REGION = "us-east-1"
Config = dict[str, Any]


class Launched:
    """Stands where Ray would reach a new node by ssh."""

    exitcode = 0

    def __init__(self, **wanted: Any) -> None:
        self.wanted = wanted

    def start(self) -> None: ...

    def join(self) -> None: ...


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": REGION,
        "HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0" * 64)
    with moto.mock_aws():
        iam = boto3.client("iam")
        for name in ("head", "worker"):  # as infra/aws/README.md has it
            profile = f"resnet-ray-{name}"
            iam.create_role(RoleName=profile, AssumeRolePolicyDocument=(ROOT / "infra/aws/trust.json").read_text())
            policy = (ROOT / f"infra/aws/{name}-policy.json").read_text()
            iam.put_role_policy(RoleName=profile, PolicyName=profile, PolicyDocument=policy)
            iam.create_instance_profile(InstanceProfileName=profile)
            iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=profile)
        yield boto3.client("ec2", region_name=REGION)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The parameters of every RunInstances, as botocore sends them."""
    from botocore.client import BaseClient

    calls: list[Config] = []
    send = BaseClient._make_api_call

    def spy(client: BaseClient, operation: str, parameters: Config) -> Any:
        if operation == "RunInstances":
            calls.append(parameters)
        return send(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", spy)
    return calls


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    """The file with its one open value set."""
    file = tmp_path / "ray-cluster.yaml"
    file.write_text((ROOT / "ray-cluster.yaml").read_text().replace("SET-YOUR-BUCKET", "my-bucket"))
    return file


def up(file: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Run `ray up`; the configuration that Ray made of the file."""
    from ray.autoscaler._private import commands
    from ray.scripts.scripts import cli

    made: list[Config] = []
    prepare = commands._bootstrap_config

    def bootstrap(*args: Any, **options: Any) -> Config:
        made.append(prepare(*args, **options))
        return made[-1]

    monkeypatch.setattr(commands, "_bootstrap_config", bootstrap)
    monkeypatch.setattr(commands, "NodeUpdaterThread", Launched)
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(cli, ["up", "-y", "--no-config-cache", str(file)])
    assert result.exit_code == 0, result.output
    return made[0]


def launch(config: Config, name: str) -> None:
    """What the autoscaler on the head does for a node of this type."""
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    kind = config["available_node_types"][name]
    tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: name}
    provider.create_node_with_resources_and_labels(kind["node_config"], tags, 1, kind["resources"], kind["labels"])


def test_ray_up_asks_for_the_head_and_nothing_else(
    ec2: Any, asked: list[Config], cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(cluster_file, monkeypatch)
    (head,) = asked
    assert (head["InstanceType"], head["MinCount"], head["MaxCount"]) == ("m7i.xlarge", 1, 1)
    assert head["IamInstanceProfile"] == {"Name": "resnet-ray-head"}
    assert "InstanceMarketOptions" not in head
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert head["BlockDeviceMappings"][0]["Ebs"] == {"VolumeSize": 150, "VolumeType": "gp3", "Encrypted": True}
    (reservation,) = ec2.describe_instances()["Reservations"]
    assert reservation["Instances"][0]["Placement"]["AvailabilityZone"] == "us-east-1a"


@pytest.mark.parametrize(
    ("name", "instance_type", "market"),
    [
        ("gpu-worker", "g6.4xlarge", {"MarketType": "spot"}),
        ("gpu-worker-on-demand", "g6.4xlarge", None),
        ("cpu-worker", "c7i.8xlarge", {"MarketType": "spot"}),
    ],
)
def test_workers_are_asked_for_as_the_file_says(  # noqa: PLR0913, PLR0917
    ec2: Any,
    asked: list[Config],
    cluster_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    instance_type: str,
    market: Config | None,
) -> None:
    config = up(cluster_file, monkeypatch)
    launch(config, name)
    worker = asked[-1]
    assert worker["InstanceType"] == instance_type
    assert worker.get("InstanceMarketOptions") == market
    assert worker["IamInstanceProfile"] == {"Name": "resnet-ray-worker"}
    assert worker["MetadataOptions"]["HttpTokens"] == "required"
    assert worker["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    tags = {tag["Key"]: tag["Value"] for spec in worker["TagSpecifications"] for tag in spec["Tags"]}
    assert tags["ray-user-node-type"] == name and tags["ray-cluster-name"] == "resnet-ray"
    groups = [group for each in worker.get("NetworkInterfaces", [worker]) for group in each.get("Groups", [])]
    assert (groups or worker["SecurityGroupIds"]) == [
        group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"] if "ray" in group["GroupName"]
    ]


def test_from_outside_only_ssh_gets_in(
    ec2: Any, asked: list[Config], cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(cluster_file, monkeypatch)
    (group,) = [each for each in ec2.describe_security_groups()["SecurityGroups"] if "ray" in each["GroupName"]]
    open_to_all = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in open_to_all] == [(22, 22)]
    inside = [rule for rule in group["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]


def test_ray_makes_no_role_of_its_own(
    ec2: Any, asked: list[Config], cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's default role has full access to EC2 and S3."""
    import boto3

    up(cluster_file, monkeypatch)
    roles = boto3.client("iam").list_roles()["Roles"]
    assert sorted(role["RoleName"] for role in roles) == ["resnet-ray-head", "resnet-ray-worker"]


@pytest.mark.parametrize("name", ["head", "worker"])
def test_policies_name_what_they_allow(name: str) -> None:
    statements = json.loads((ROOT / f"infra/aws/{name}-policy.json").read_text())["Statement"]
    actions = {action for each in statements for action in each["Action"]}
    assert not [action for action in actions if action.endswith(":*") or action == "*"]
    unbounded = {action for each in statements if each["Resource"] == "*" for action in each["Action"]}
    assert all(action.startswith("ec2:Describe") for action in unbounded)
    changing = {"ec2:CreateTags", "ec2:TerminateInstances"} & actions  # of instances that are others', too
    assert not [each for each in statements if changing & set(each["Action"]) and "Condition" not in each]
    writable = [each["Resource"] for each in statements if "s3:PutObject" in each["Action"]]
    folders = {resource.rsplit("/", 2)[1] for resources in writable for resource in resources}
    assert folders == {"data", "runs", "mlflow"} if name == "head" else {"data", "runs"}


def test_yaml_of_the_nodes_survives_rays_own_reading(cluster_file: Path) -> None:
    kinds = yaml.safe_load(cluster_file.read_text())["available_node_types"]
    assert kinds["gpu-worker"]["node_config"].keys() - kinds["gpu-worker-on-demand"]["node_config"].keys() == {
        "InstanceMarketOptions"
    }
