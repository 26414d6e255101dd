"""Create what `ray-cluster.yaml` needs in an AWS account: `python -m infra.aws_setup BUCKET REGION`.

The command creates these things, or updates them from the files of infra/aws:

- the bucket, closed to the public, with a rule that deletes unfinished uploads after a week;
- the roles and instance profiles `resnet-ray-head` and `resnet-ray-worker`;
- the policy `resnet-ray-operator`, which you attach to the user who runs `ray up`;
- the security group that Ray looks for in the default VPC, with SSH open to --ssh-from only;
- a gateway through which the VPC reaches S3 free of charge;
- the service role of spot instances;
- with --budget and --notify, an alarm on the account's monthly bill.

Without this security group, Ray makes one that opens SSH to the whole Internet.

Then the command writes region, zone and bucket into ray-cluster.yaml. The zone is the first one that offers every
instance type of the file. If you run the command again, it changes what differs. It needs an administrator's
credentials, as boto3 finds them. `ray up` afterwards needs only the operator policy.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.errors import UserError, run

FILES = Path(__file__).resolve().parent / "aws"
CLUSTER_FILE = Path(__file__).resolve().parents[1] / "ray-cluster.yaml"
_BUCKET, _SOURCE = "SET-YOUR-BUCKET", "SET-SOURCE-BUCKET"
_OWN_ADDRESS = "https://checkip.amazonaws.com"
_UPLOADS = "resnet-ray-abort-uploads"
_BUDGET = "resnet-ray"
_SHARES = (50, 80, 100)  # percent of the budget that send an e-mail
_EXISTS = frozenset({"EntityAlreadyExists", "InvalidPermission.Duplicate", "DuplicateRecordException"})


def main() -> None:
    """Create everything, or stop at the first request that AWS refuses."""
    parser = argparse.ArgumentParser(prog="python -m infra.aws_setup", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bucket", metavar="BUCKET", help="for data sets, runs and MLflow; created if missing")
    parser.add_argument("region", metavar="REGION", help="such as us-east-1")
    parser.add_argument("--source-bucket", default="", help="another bucket that nodes may read images from")
    parser.add_argument(
        "--ssh-from", default="", metavar="CIDR", help="network that may log in by SSH; default: this machine's address"
    )
    parser.add_argument(
        "--budget", type=int, default=0, metavar="USD", help="monthly budget of the account; needs --notify"
    )
    parser.add_argument("--notify", default="", metavar="EMAIL", help="gets e-mail at 50, 80 and 100 %% of the budget")
    parser.add_argument("--file", type=Path, default=CLUSTER_FILE, help="cluster file to fill in")
    arguments = parser.parse_args()
    _check(arguments)
    import boto3

    def client(service: str) -> Any:
        return boto3.client(service, region_name=arguments.region)

    with _as_user_error():
        zone = _zone(client("ec2"), arguments.file, arguments.region)
        _make_bucket(client("s3"), arguments.bucket, arguments.region)
        _make_roles(client("iam"), arguments.bucket, arguments.source_bucket)
        account = client("sts").get_caller_identity()["Account"]
        _make_operator_policy(client("iam"), account, arguments.bucket)
        _make_network(client("ec2"), arguments.region, arguments.ssh_from or _own_address(), arguments.file)
        if arguments.budget:
            _make_budget(client("budgets"), account, arguments.budget, arguments.notify)
    _fill_in(arguments.file, arguments.region, zone, arguments.bucket)
    _print_line(f"{arguments.file.name}: {arguments.region}, {zone}, s3://{arguments.bucket}")


def _check(arguments: argparse.Namespace) -> None:
    for bucket in filter(None, (arguments.bucket, arguments.source_bucket)):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise UserError(f"BUCKET must be 3 to 63 characters of a-z, 0-9, dots and hyphens, got {bucket!r}")
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", arguments.region):
        raise UserError(f"REGION must be one of AWS's, such as us-east-1, got {arguments.region!r}")
    if bool(arguments.budget) != bool(arguments.notify):
        raise UserError("--budget and --notify belong together: give both or neither")
    if arguments.budget < 0:
        raise UserError(f"--budget must be positive, in US dollars a month, got {arguments.budget}")
    if arguments.ssh_from:
        try:
            network = ipaddress.IPv4Network(arguments.ssh_from)
        except ValueError as error:
            raise UserError(f"--ssh-from must be an IPv4 network such as 203.0.113.7/32: {error}") from error
        if network.prefixlen == 0:
            raise UserError("--ssh-from 0.0.0.0/0 lets the whole Internet try to log in: name your own network")
    if not arguments.file.is_file():
        raise UserError(f"there is no cluster file {arguments.file}: name one with --file")


@contextmanager
def _as_user_error() -> Iterator[None]:
    """Turn AWS's refusals, and missing credentials, into a UserError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        answer = error.response.get("Error", {})
        raise UserError(f"AWS refuses {error.operation_name}: {answer.get('Code')}: {answer.get('Message')}") from error
    except BotoCoreError as error:
        raise UserError(f"cannot send requests to AWS: {error}") from error


def _unless_there(make: Callable[[], object]) -> bool:
    """Create something; return False if AWS says that it exists."""
    from botocore.exceptions import ClientError

    try:
        make()
    except ClientError as error:
        if error.response["Error"]["Code"] not in _EXISTS:
            raise
        return False
    return True


def _types(file: Path) -> set[str]:
    import yaml

    kinds = yaml.safe_load(file.read_text())["available_node_types"].values()
    return {kind["node_config"]["InstanceType"] for kind in kinds}


def _zone(ec2: Any, file: Path, region: str) -> str:
    """Return the first zone that has a default subnet and offers every instance type of the file."""
    subnets = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
    zones = sorted(subnet["AvailabilityZone"] for subnet in subnets)
    if not zones:
        raise UserError(
            f"{region} has no default VPC: make one (`aws ec2 create-default-vpc --region {region}`), or give every"
            " node type SubnetIds and SecurityGroupIds of your own"
        )
    wanted = _types(file)
    offers = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": sorted(wanted)}]
    )
    offered = {(each["Location"], each["InstanceType"]) for page in offers for each in page["InstanceTypeOfferings"]}
    for zone in zones:
        if all((zone, kind) in offered for kind in wanted):
            return str(zone)
    lacking = {zone: sorted(kind for kind in wanted if (zone, kind) not in offered) for zone in zones}
    gaps = "; ".join(f"{zone} lacks {', '.join(kinds)}" for zone, kinds in lacking.items())
    raise UserError(f"no zone of {region} offers every type of {file.name}: {gaps}: choose another region")


def _make_bucket(s3: Any, bucket: str, region: str) -> None:
    from botocore.exceptions import ClientError

    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise UserError(f"the bucket {bucket} is somebody else's, or in another region: choose another") from error
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket=bucket, **place)
        _print_line(f"bucket {bucket}")
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
    try:
        rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
            raise
        rules = []
    if _UPLOADS not in {rule.get("ID") for rule in rules}:
        abort = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}
        rules.append({"ID": _UPLOADS, "Status": "Enabled", "Filter": {"Prefix": ""}, **abort})
        s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})


def policy(name: str, bucket: str, source_bucket: str = "") -> str:
    """Return a policy of infra/aws for this bucket; without a source bucket, leave out the right to read one."""
    text = (FILES / f"{name}-policy.json").read_text().replace(_BUCKET, bucket)
    document = json.loads(text.replace(_SOURCE, source_bucket) if source_bucket else text)
    document["Statement"] = [each for each in document["Statement"] if _SOURCE not in json.dumps(each)]
    return json.dumps(document)


def _make_roles(iam: Any, bucket: str, source_bucket: str) -> None:
    trust = (FILES / "trust.json").read_text()
    for name in ("head", "worker"):
        role = f"resnet-ray-{name}"
        _unless_there(lambda role=role: iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust))  # type: ignore[misc]
        iam.put_role_policy(RoleName=role, PolicyName=role, PolicyDocument=policy(name, bucket, source_bucket))
        _unless_there(lambda role=role: iam.create_instance_profile(InstanceProfileName=role))  # type: ignore[misc]
        held = iam.get_instance_profile(InstanceProfileName=role)["InstanceProfile"]["Roles"]
        if role not in {each["RoleName"] for each in held}:
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        _print_line(f"role and instance profile {role}")
    spot = "AWSServiceRoleForEC2Spot"
    if not _has_role(iam, spot) and _unless_there(
        lambda: iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    ):
        _print_line(f"role {spot}")


def _has_role(iam: Any, name: str) -> bool:
    try:
        iam.get_role(RoleName=name)
    except iam.exceptions.NoSuchEntityException:
        return False
    return True


def _make_operator_policy(iam: Any, account: str, bucket: str) -> None:
    name, document = "resnet-ray-operator", policy("operator", bucket)
    arn = f"arn:aws:iam::{account}:policy/{name}"
    if not _unless_there(lambda: iam.create_policy(PolicyName=name, PolicyDocument=document)):
        versions = iam.list_policy_versions(PolicyArn=arn)["Versions"]
        for old in [each for each in versions if not each["IsDefaultVersion"]][-1:]:  # AWS keeps at most five
            iam.delete_policy_version(PolicyArn=arn, VersionId=old["VersionId"])
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=document, SetAsDefault=True)
    _print_line(f"policy {arn}: attach it to the user who runs `ray up`")


def _own_address() -> str:
    try:
        with urllib.request.urlopen(_OWN_ADDRESS, timeout=10) as answer:
            address = ipaddress.IPv4Address(answer.read().decode().strip())
    except (OSError, ValueError) as error:
        raise UserError(f"{_OWN_ADDRESS} did not answer with our address ({error}): give --ssh-from CIDR") from error
    return f"{address}/32"


def _make_network(ec2: Any, region: str, ssh_from: str, file: Path) -> None:
    """Create or update the security group and the S3 gateway; Ray adds no rules to a group that has some."""
    import yaml

    name = f"ray-autoscaler-{yaml.safe_load(file.read_text())['cluster_name']}"
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    here = {"Name": "vpc-id", "Values": [vpc]}
    found = ec2.describe_security_groups(Filters=[here, {"Name": "group-name", "Values": [name]}])["SecurityGroups"]
    group = (
        found[0]["GroupId"]
        if found
        else ec2.create_security_group(GroupName=name, VpcId=vpc, Description="Nodes of resnet-ray")["GroupId"]
    )
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    rules = found[0]["IpPermissions"] if found else []
    others = [
        {"CidrIp": each["CidrIp"]}
        for rule in rules
        if (rule.get("FromPort"), rule.get("ToPort")) == (22, 22)
        for each in rule["IpRanges"]
        if each["CidrIp"] != ssh_from
    ]
    if others:
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[{**ssh, "IpRanges": others}])
    for rule in (
        {**ssh, "IpRanges": [{"CidrIp": ssh_from}]},
        {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]},
    ):
        _unless_there(lambda rule=rule: ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule]))  # type: ignore[misc]
    _print_line(f"security group {name}: SSH from {ssh_from} only")
    service = f"com.amazonaws.{region}.s3"
    endpoints = ec2.describe_vpc_endpoints(Filters=[here, {"Name": "service-name", "Values": [service]}])
    if not [each for each in endpoints["VpcEndpoints"] if each.get("VpcEndpointType", "Gateway") == "Gateway"]:
        tables = [each["RouteTableId"] for each in ec2.describe_route_tables(Filters=[here])["RouteTables"]]
        ec2.create_vpc_endpoint(VpcId=vpc, ServiceName=service, VpcEndpointType="Gateway", RouteTableIds=tables)
        _print_line("gateway endpoint of S3")


def _make_budget(budgets: Any, account: str, dollars: int, notify: str) -> None:
    limit = {"Amount": str(dollars), "Unit": "USD"}
    budget = {"BudgetName": _BUDGET, "BudgetType": "COST", "TimeUnit": "MONTHLY", "BudgetLimit": limit}
    alarm = {"NotificationType": "ACTUAL", "ComparisonOperator": "GREATER_THAN", "ThresholdType": "PERCENTAGE"}
    subscribers = [{"SubscriptionType": "EMAIL", "Address": notify}]
    notifications = [{"Notification": alarm | {"Threshold": share}, "Subscribers": subscribers} for share in _SHARES]
    wanted = {"AccountId": account, "Budget": budget, "NotificationsWithSubscribers": notifications}
    if not _unless_there(lambda: budgets.create_budget(**wanted)):  # an earlier budget may differ
        budgets.delete_budget(AccountId=account, BudgetName=_BUDGET)
        budgets.create_budget(**wanted)
    _print_line(f"budget {_BUDGET}: ${dollars} a month, e-mail to {notify}; AWS counts hours late, and stops nothing")


def _fill_in(file: Path, region: str, zone: str, bucket: str) -> None:
    """Write the values into `metadata.set`, whose anchors the rest of the file uses."""
    text = file.read_text()
    for start, value in (
        ("region: &region ", region),
        ("availability_zone: &zone ", zone),
        ("nodes_region: &nodes_region -e AWS_DEFAULT_REGION=", region),
        ("storage: &storage -e RESNET_RAY_STORAGE=s3://", bucket),
    ):
        text, count = re.subn(rf"(?m)^(\s+{re.escape(start)})\S+", rf"\g<1>{value}", text)
        if count != 1:
            raise UserError(f"{file} has no line {start!r}: restore its section metadata.set, then run this again")
    file.write_text(text)


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    run(main)
