"""docs/aws-first-hour.md beside the files: every command in it exists with its options, and every name agrees."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import botocore.session
import click
import pytest
import yaml
from botocore import xform_name

from infra import launch_failures as launches
from pipelines.estimate.machines import INSTANCES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/aws-first-hour.md"
PAGES = [PAGE, ROOT / "docs/other-clusters.md", ROOT / "docs/operations.md", ROOT / "infra/aws/README.md"]
OF_THE_CLI = {"--region", "--query", "--output", "--max-items"}  # of every command of AWS's


def commands(page: Path) -> list[str]:
    """Every line of a block of shell, and of a block that is indented and begins like one of ours."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    blocks += re.findall(r"(?m)^    ((?:python|ray|aws) .*)$", text)
    return [line for line in "\n".join(blocks).splitlines() if line.strip() and not line.startswith("#")]


def parts(line: str) -> list[list[str]]:
    """The commands of a line, those that a remote shell gets too."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("&|;"):
            found.append([])
        else:
            found[-1].append(word)
    return [each for each in found if each]


@cache
def documented() -> list[tuple[str, list[str]]]:
    return [(page.name, part) for page in PAGES for line in commands(page) for part in parts(line)]


def of(program: str) -> list[Any]:
    return [
        pytest.param(words, id=f"{name}: {' '.join(words)[:70]}")
        for name, words in documented()
        if Path(words[0]).name == program
    ]


def test_every_command_is_of_a_kind_that_is_checked_here() -> None:
    programs = {words[0] for _, words in documented() if not re.match(r"\w+=|export$|\.$|cd$", words[0])}
    others = {"docker", "kubectl", "sbatch", "make", "chmod", "."}
    assert programs <= {"python", "ray", "aws", *others}
    assert {"python", "ray", "aws"} <= programs
    assert len(commands(PAGE)) > 25


@pytest.mark.parametrize("words", of("aws"))
def test_aws_knows_the_operation_and_its_options(words: list[str]) -> None:
    service, operation = words[1:3]
    options = {word.partition("=")[0] for word in words[3:] if word.startswith("--")} - OF_THE_CLI
    if service == "s3":
        assert operation in ("cp", "ls", "sync") and not options
        return
    model = botocore.session.get_session().get_service_model(service)
    names = {xform_name(name, "-"): name for name in model.operation_names}
    members = model.operation_model(names[operation]).input_shape.members
    assert options <= {f"--{xform_name(member, '-')}" for member in members}


@pytest.mark.parametrize("words", of("ray"))
def test_ray_knows_the_command_and_its_options(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    command: click.Command = cli
    rest = words[1:]
    while isinstance(command, click.Group):
        command, rest = command.commands[rest[0]], rest[1:]
    own = rest[: rest.index("--")] if "--" in rest else rest
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in own if word.startswith("-")} <= known
    files = [word for word in own if word.endswith(".yaml")]
    assert all((ROOT / file).is_file() for file in files)
    if "--" in rest:
        check_python_or_script(rest[rest.index("--") + 1 :])
    if command.name == "exec":
        for part in parts(rest[-1]):
            if part[0] == "python":
                check_python_or_script(part)


@pytest.mark.parametrize("words", of("python"))
def test_our_programs_know_their_options(words: list[str]) -> None:
    check_python_or_script(words)


@pytest.mark.parametrize("words", of("sbatch"))
def test_the_batch_script_passes_what_train_knows(words: list[str]) -> None:
    place = words.index("infra/slurm/train.sbatch")
    assert (ROOT / words[place]).is_file()
    check_python_or_script(["python", "pipelines/train.py", *words[place + 1 :]])


def check_python_or_script(words: list[str]) -> None:
    program, rest = (f"-m {words[2]}", words[3:]) if words[1] == "-m" else (words[1], words[2:])
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return
    told = usage(program)
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= set(re.findall(r"--[\w-]+", told))
    verbs = [word for word in rest if program.endswith("cluster.py") and not word.endswith((".yaml", "FILE", "FILE…"))]
    assert all(verb in told for verb in verbs)
    if program == "pipelines/train.py":
        check_recipe(rest)


@cache
def usage(program: str) -> str:
    words = program.split()
    assert words[0] == "-m" or (ROOT / program).is_file(), program
    done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_recipe(rest: list[str]) -> None:
    """The recipe exists, and it takes the values of `--set`."""
    from pipelines.config.recipe import load_recipe, parse_overrides

    named = [word for word in rest[:1] if not word.startswith("--") and word != "RECIPE"]
    values = [value for flag, value in pairwise(rest) if flag == "--set"]
    if named != ["my_recipe.toml"]:
        load_recipe(named[0] if named else "mnist5k", parse_overrides(values))


def test_names_of_the_page_are_those_of_the_cluster_file() -> None:
    text, file = PAGE.read_text(), yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
    kinds = file["available_node_types"]
    for name in re.findall(r"`((?:gpu|cpu)-worker[\w-]*)`", text):
        assert name in kinds
    types = {kind["node_config"]["InstanceType"] for kind in kinds.values()}
    assert set(re.findall(r"\b[a-z]\d\w*\.\d*xlarge\b", text)) == types
    assert file["docker"]["image"] in text
    assert f"Values={file['cluster_name']} " in text
    assert f"mlflow-database/{file['cluster_name']}" in text
    mount = next(option for option in file["docker"]["head_run_options"] if option.startswith("-v "))
    assert mount.endswith("/mlflow") and "mlflow_backup ~/mlflow " in text
    for log in re.findall(r"~/(\w+\.log)", text):
        assert any(f">> ~/{log}" in line for line in file["head_start_ray_commands"])


def test_prices_of_the_page_agree_with_the_estimate_and_add_up() -> None:
    text = PAGE.read_text()
    prices = {
        line.split("|")[1]: float(line.split("|")[2])
        for line in text.splitlines()
        if re.match(r"^\|.*\| \d+\.\d{3} \|$", line)
    }
    (gpu,) = [price for name, price in prices.items() if "g6.4xlarge" in name]
    assert gpu == INSTANCES["g6.4xlarge"].hour
    shares = {name: 8 for name in prices if "g6.4xlarge" in name or "disk of a worker" in name}
    shares |= {name: 1 for name in prices if "head" in name}
    total = sum(count * prices[name] for name, count in shares.items())
    assert f"Eight L4 on demand and the head: ${total:.2f} an hour" in text


def test_no_command_is_left_in_the_background_of_the_terminal() -> None:
    """`ray dashboard … &` may stop where it writes to the terminal: it needs a terminal of its own."""
    assert [line for page in PAGES for line in commands(page) if re.search(r"(?<!&)&\s*$", line)] == []


def test_cpu_nodes_come_only_where_somebody_lets_them() -> None:
    """A GPU node of the file decodes for its own GPU; two more types would double the bill."""
    kinds = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["available_node_types"]
    assert [kinds[name]["max_workers"] for name in ("cpu-worker", "cpu-worker-on-demand")] == [0, 0]


@pytest.mark.parametrize("name", ["infra/local-cluster.yaml", "infra/slurm/train.sbatch", "infra/aws/node.sh"])
def test_gloo_and_nccl_get_the_interface_between_the_nodes(name: str) -> None:
    text = " ".join((ROOT / name).read_text().split())
    assert re.search(r"export [^;]*GLOO_SOCKET_IFNAME", text) and re.search(r"export [^;]*NCCL_SOCKET_IFNAME", text)


def test_quotas_of_the_page_are_what_the_file_may_start() -> None:
    """Numbers of the table, from the file's types: vCPUs of a node, and of as many as may come."""
    text, kinds = PAGE.read_text(), yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["available_node_types"]
    rows = {
        (code, name): (int(one), int(most))
        for name, code, one, most in re.findall(
            r"^\| (.*?) \| `(L-\w+)` \| \d+ \| (\d+) \| (\d+) \|$", text, re.MULTILINE
        )
    }
    gpu, cpu = kinds["gpu-worker"], kinds["cpu-worker"]
    one, most = gpu["resources"]["CPU"], gpu["resources"]["CPU"] * gpu["max_workers"]
    figures = [figure for (code, _), figure in rows.items() if code in ("L-3819A6DF", "L-DB2E81BA")]
    assert figures == [(one, most)] * 2 and f"--desired-value {most} " in text
    standard = [figure for (code, _), figure in rows.items() if code == "L-1216C47A"]
    head = 4  # vCPUs of an m7i.xlarge, which the file hides from Ray
    assert standard == [(head, head), (head + cpu["resources"]["CPU"],) * 2]


def test_answers_of_ec2_on_the_page_are_those_that_are_told_apart() -> None:
    row = next(line for line in PAGE.read_text().splitlines() if "a quota: waiting does not help" in line)
    assert set(re.findall(r"`(\w+)`", row)) <= set(launches._QUOTAS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_pages_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for named in re.findall(r"`((?:infra|pipelines|tests|docs|benchmarks)/[\w./-]+\.\w+)`", text):
        assert (ROOT / named).exists(), named
