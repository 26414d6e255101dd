"""`ray up -y ray-cluster.yaml` against an EC2 and IAM that are moto's: what the API was asked for, up to node launch.

No machine comes of it, so what a node does after its launch is not shown here; `tests/cluster/test_up.py` shows that
on machines of our own.
"""

from __future__ import annotations

import difflib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from click.testing import CliRunner

from infra import aws_setup, checkout
from infra.cluster import wrong_with
from infra.errors import UserError

moto = pytest.importorskip("moto", reason="the package moto is not installed")

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
REGION, BUCKET, SSH_FROM = "us-east-1", "my-bucket", "203.0.113.7/32"
RAY_LOG_FORMAT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"  # ray_constants.LOGGER_FORMAT
Config = dict[str, Any]


class Launched:
    """Stands where Ray would reach a new node by ssh."""

    exitcode = 0

    def __init__(self, **wanted: Any) -> None:
        self.wanted = wanted

    def start(self) -> None: ...

    def join(self) -> None: ...


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    file = tmp_path / "ray-cluster.yaml"
    shutil.copy(ROOT / "ray-cluster.yaml", file)
    return file


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An account of AWS that nobody has used."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": REGION,
        "HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0" * 64)
    with moto.mock_aws():
        yield


@pytest.fixture
def ec2(account: None, cluster_file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The account after `python -m infra.aws_setup`, which has filled in the cluster file, too."""
    import boto3

    set_up(monkeypatch, cluster_file)
    return boto3.client("ec2", region_name=REGION)


def set_up(monkeypatch: pytest.MonkeyPatch, file: Path, *options: str, region: str = REGION) -> None:
    arguments = [BUCKET, region, "--file", str(file), "--ssh-from", SSH_FROM, *options]
    monkeypatch.setattr("sys.argv", ["aws_setup", *arguments])
    aws_setup.main()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config]]:
    """Every request to AWS: its action, as policies name it, and its parameters, as botocore sends them."""
    from botocore.client import BaseClient

    made: list[tuple[str, Config]] = []
    send = BaseClient._make_api_call

    def spy(client: BaseClient, operation: str, parameters: Config) -> Any:
        made.append((f"{client.meta.service_model.signing_name}:{operation}", parameters))
        return send(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", spy)
    return made


def asked(calls: list[tuple[str, Config]]) -> list[Config]:
    """The parameters of every RunInstances."""
    return [parameters for action, parameters in calls if action == "ec2:RunInstances"]


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
    checkout.export()
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
    ec2: Any, calls: list[tuple[str, Config]], cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(cluster_file, monkeypatch)
    (head,) = asked(calls)
    assert (head["InstanceType"], head["MinCount"], head["MaxCount"]) == ("m7i.xlarge", 1, 1)
    assert head["IamInstanceProfile"] == {"Name": "resnet-ray-head"}
    assert "InstanceMarketOptions" not in head
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    (disk,) = head["BlockDeviceMappings"]
    assert disk["Ebs"] == {"VolumeSize": 150, "VolumeType": "gp3", "Throughput": 500, "Encrypted": True}
    (reservation,) = ec2.describe_instances()["Reservations"]
    assert reservation["Instances"][0]["Placement"]["AvailabilityZone"] == "us-east-1a"


@pytest.mark.parametrize(
    ("name", "instance_type", "market"),
    [
        ("gpu-worker", "g6.4xlarge", {"MarketType": "spot"}),
        ("gpu-worker-on-demand", "g6.4xlarge", None),
        ("cpu-worker", "c7i.8xlarge", {"MarketType": "spot"}),
        ("cpu-worker-on-demand", "c7i.8xlarge", None),
    ],
)
def test_workers_are_asked_for_as_the_file_says(  # noqa: PLR0913, PLR0917
    ec2: Any,
    calls: list[tuple[str, Config]],
    cluster_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    instance_type: str,
    market: Config | None,
) -> None:
    config = up(cluster_file, monkeypatch)
    calls.clear()
    launch(config, name)
    (worker,) = asked(calls)
    assert worker["InstanceType"] == instance_type
    assert worker.get("InstanceMarketOptions") == market
    assert worker["IamInstanceProfile"] == {"Name": "resnet-ray-worker"}
    assert worker["MetadataOptions"]["HttpTokens"] == "required"
    assert worker["InstanceInitiatedShutdownBehavior"] == "terminate"  # as infra/aws/orphan.sh shuts it down
    (disk,) = worker["BlockDeviceMappings"]
    assert disk["Ebs"] == {"VolumeSize": 300, "VolumeType": "gp3", "Throughput": 500, "Encrypted": True}
    tags = {tag["Key"]: tag["Value"] for spec in worker["TagSpecifications"] for tag in spec["Tags"]}
    assert tags["ray-user-node-type"] == name and tags["ray-cluster-name"] == "resnet-ray"
    groups = [group for each in worker.get("NetworkInterfaces", [worker]) for group in each.get("Groups", [])]
    assert (groups or worker["SecurityGroupIds"]) == [group["GroupId"] for group in ray_groups(ec2)]
    # what the autoscaler asked for is in its policy, and the instance's type too
    assert {action for action, _ in calls} <= actions("head")
    assert instance_type in types_that_may_start("head")


def test_ray_up_needs_no_more_than_the_operator_policy_has(
    ec2: Any, calls: list[tuple[str, Config]], cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.scripts.scripts import cli

    up(cluster_file, monkeypatch)
    result = CliRunner().invoke(cli, ["down", "-y", str(cluster_file)])
    assert result.exit_code == 0, result.output
    made = {action for action, _ in calls}
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateKeyPair"} <= made
    assert made <= actions("operator")
    assert asked(calls)[0]["InstanceType"] in types_that_may_start("operator")
    (profile,) = {each["IamInstanceProfile"]["Name"] for each in asked(calls)}
    assert f"arn:aws:iam::*:role/{profile}" in resources("operator", "iam:PassRole")


def ray_groups(ec2: Any) -> list[Config]:
    groups: list[Config] = ec2.describe_security_groups()["SecurityGroups"]
    return [each for each in groups if "ray" in each["GroupName"]]


def test_from_outside_only_ssh_gets_in_and_from_one_network(
    ec2: Any, cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group that the set-up made is the one that Ray takes; Ray's own is open to 0.0.0.0/0."""
    up(cluster_file, monkeypatch)
    (group,) = ray_groups(ec2)
    outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in outside] == [(22, 22)]
    assert [each["CidrIp"] for rule in outside for each in rule["IpRanges"]] == [SSH_FROM]
    inside = [rule for rule in group["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]


def test_ray_makes_no_role_of_its_own(ec2: Any, cluster_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's default role has full access to EC2 and S3."""
    import boto3

    up(cluster_file, monkeypatch)
    roles = {role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]}
    roles -= {"AWSServiceRoleForspot", "AWSServiceRoleForEC2Spot"}  # moto's name, and AWS's
    assert roles == {"resnet-ray-head", "resnet-ray-worker"}


def test_the_file_that_the_set_up_filled_in_is_right(ec2: Any, cluster_file: Path) -> None:
    before, after = (ROOT / "ray-cluster.yaml").read_text(), cluster_file.read_text()
    changed = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert [line[0] for line in changed] == ["-", "+"] and f"RESNET_RAY_STORAGE=s3://{BUCKET}" in changed[1]
    assert "SET-" not in after
    assert wrong_with(cluster_file) == []


def test_the_set_up_again_changes_what_differs_and_nothing_else(
    ec2: Any, cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    s3, iam = boto3.client("s3"), boto3.client("iam")
    rules = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert [rule["AbortIncompleteMultipartUpload"] for rule in rules] == [{"DaysAfterInitiation": 7}]
    own = {"ID": "mine", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 1}}
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [*rules, own]})
    for network in ("198.51.100.0/24", "198.51.100.0/24", SSH_FROM):  # a laptop moves
        set_up(monkeypatch, cluster_file, "--source-bucket", "photographs", "--ssh-from", network)
        (group,) = ray_groups(ec2)
        assert [each["CidrIp"] for rule in group["IpPermissions"] for each in rule["IpRanges"]] == [network]
    ids = {rule["ID"] for rule in s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]}
    assert ids == {"mine", "resnet-ray-abort-uploads"}
    for name in ("head", "worker"):
        document = iam.get_role_policy(RoleName=f"resnet-ray-{name}", PolicyName=f"resnet-ray-{name}")["PolicyDocument"]
        readable = [each["Resource"] for each in document["Statement"] if "s3:GetObject" in each["Action"]]
        assert "arn:aws:s3:::photographs/*" in json.dumps(readable)
    assert len(ec2.describe_vpc_endpoints()["VpcEndpoints"]) == 1
    assert all(s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"].values())


def test_a_budget_tells_somebody(account: None, cluster_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    for dollars in ("100", "200"):
        set_up(monkeypatch, cluster_file, "--budget", dollars, "--notify", "me@example.org")
    number = boto3.client("sts").get_caller_identity()["Account"]
    budgets = boto3.client("budgets", region_name=REGION)
    (budget,) = budgets.describe_budgets(AccountId=number)["Budgets"]
    assert (budget["TimeUnit"], float(budget["BudgetLimit"]["Amount"])) == ("MONTHLY", 200.0)
    told = budgets.describe_notifications_for_budget(AccountId=number, BudgetName="resnet-ray")["Notifications"]
    assert [each["Threshold"] for each in told] == [50, 80, 100]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ssh-from", "0.0.0.0/0"], "--ssh-from 0.0.0.0/0 lets the whole Internet try to log in"),
        (["--ssh-from", "home"], "--ssh-from must be an IPv4 network such as 203.0.113.7/32"),
        (["--budget", "100"], "--budget and --notify belong together"),
        (
            ["--source-bucket", "My_Bucket"],
            "BUCKET must be 3 to 63 characters of a-z, 0-9, dots and hyphens, got 'My_Bucket'",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    account: None, cluster_file: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    import boto3

    with pytest.raises(UserError) as refusal:
        set_up(monkeypatch, cluster_file, *options)
    assert told in str(refusal.value)
    assert boto3.client("s3").list_buckets()["Buckets"] == []


def test_a_region_without_the_types_is_refused_with_what_it_lacks(
    account: None, cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no zone of eu-west-1 offers every type .*: eu-west-1a lacks g6\.4xlarge; "):
        set_up(monkeypatch, cluster_file, region="eu-west-1")
    assert "us-east-1a" in cluster_file.read_text()


def test_a_region_without_a_default_vpc_is_refused(
    account: None, cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    client = boto3.client("ec2", region_name=REGION)
    for subnet in client.describe_subnets()["Subnets"]:
        client.delete_subnet(SubnetId=subnet["SubnetId"])
    with pytest.raises(UserError, match=r"us-east-1 has no default VPC: make one \(`aws ec2 create-default-vpc"):
        set_up(monkeypatch, cluster_file)


def statements(name: str) -> list[Config]:
    found: list[Config] = json.loads((ROOT / f"infra/aws/{name}-policy.json").read_text())["Statement"]
    return found


def actions(name: str) -> set[str]:
    return {action for each in statements(name) for action in each["Action"]}


def resources(name: str, action: str) -> str:
    return json.dumps([each["Resource"] for each in statements(name) if action in each["Action"]])


def types_that_may_start(name: str) -> list[str]:
    """By the one statement about instances: without its condition any type may start."""
    (instances,) = [
        each
        for each in statements(name)
        if each["Action"] == ["ec2:RunInstances"] and "instance/" in str(each["Resource"])
    ]
    found: list[str] = instances["Condition"]["StringEquals"]["ec2:InstanceType"]
    return found


@pytest.mark.parametrize("name", ["head", "worker", "operator"])
def test_policies_name_what_they_allow(name: str) -> None:
    assert not [action for action in actions(name) if action.endswith("*")]
    unbounded = {action for each in statements(name) if each["Resource"] == "*" for action in each["Action"]}
    assert all(action.startswith("ec2:Describe") for action in unbounded)
    changing = {"ec2:CreateTags", "ec2:TerminateInstances"}  # of instances that are others', too
    assert not [each for each in statements(name) if changing & set(each["Action"]) and "Condition" not in each]


@pytest.mark.parametrize(
    ("name", "folders"), [("head", {"data", "runs", "mlflow", "mlflow-database"}), ("worker", {"data", "runs"})]
)
def test_nodes_read_all_of_the_bucket_and_write_what_is_theirs(name: str, folders: set[str]) -> None:
    writable = [each["Resource"] for each in statements(name) if "s3:PutObject" in each["Action"]]
    assert {resource.rsplit("/", 2)[1] for each in writable for resource in each} == folders
    assert "arn:aws:s3:::SET-YOUR-BUCKET/*" in resources(name, "s3:GetObject")  # archives lie where you put them
    without = aws_setup.policy(name, "mine")
    assert "SET-" not in without and "photographs" in aws_setup.policy(name, "mine", "photographs")


def test_yaml_of_the_nodes_survives_rays_own_reading(cluster_file: Path) -> None:
    kinds = yaml.safe_load(cluster_file.read_text())["available_node_types"]
    for name in ("gpu-worker", "cpu-worker"):
        assert kinds[name]["node_config"].keys() - kinds[f"{name}-on-demand"]["node_config"].keys() == {
            "InstanceMarketOptions"
        }


def test_a_refusal_of_ec2_reaches_the_waiting_run(
    ec2: Any, cluster_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """botocore's error, through Ray's provider and the line of its monitor's log, to the sentence a user reads."""
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError
    from ray.autoscaler.v2.instance_manager import node_provider

    from infra import launch_failures as launches

    config = up(cluster_file, monkeypatch)
    send = BaseClient._make_api_call
    answer = {
        "Error": {"Code": "VcpuLimitExceeded", "Message": "You have requested more vCPU capacity than your limit of 0"}
    }

    def refuse(client: BaseClient, operation: str, parameters: Config) -> Any:
        if operation == "RunInstances":
            raise ClientError(answer, operation)
        return send(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", refuse)
    log = logging.FileHandler(tmp_path / "monitor.log")
    log.setFormatter(logging.Formatter(RAY_LOG_FORMAT))
    node_provider.logger.addHandler(log)
    monkeypatch.setattr(node_provider.logger, "level", logging.INFO)
    monkeypatch.setattr(launches, "_logs_of_the_autoscaler", lambda: tmp_path)

    class Reader:
        def get_cached_autoscaling_config(self) -> Any:
            from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

            return AutoscalingConfig(config, skip_content_hash=True)

    from ray.autoscaler._private.providers import _get_node_provider

    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    adapter = node_provider.NodeProviderAdapter(provider, cast(Any, Reader()))
    try:
        adapter._launch_nodes_by_type("gpu-worker", 1, "request")
    finally:
        node_provider.logger.removeHandler(log)
    (refusal,) = launches.recent_launch_failures()
    assert str(refusal) == f"gpu-worker was refused: VcpuLimitExceeded: {answer['Error']['Message']}"
    assert refusal.is_quota
