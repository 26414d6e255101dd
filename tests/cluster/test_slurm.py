"""infra/slurm/train.sbatch on two hosts made of namespaces; `srun` and `scontrol` are ours, there is no Slurm."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.deployed import STORAGE, serve_bucket
from tests.cluster.hosts import ROOT, Host, missing, network
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
ADDRESSES = {"node1": "10.78.0.1", "node2": "10.78.0.2"}
JOB = {
    **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"},
    **{"SLURMD_NODENAME": "node1", "SLURM_CPUS_ON_NODE": "2", "SLURM_SUBMIT_DIR": "$HOME/resnet-ray"},
}
SRUN = """#!/bin/bash
# Run the command on node2, with the environment and the functions of whoever calls, as srun does.
echo "$@" > ~/srun.called
while [[ $1 == --* ]]; do shift; done
{ export -p; export -fp; printf 'cd %q\n' "$PWD"; printf '%q ' "$@"; } | ssh node2 bash -s
"""
SCONTROL = """#!/bin/bash
case "$1" in
show) test "$2 $3" = "hostnames node[1-2]" && printf 'node1\\nnode2\\n' ;;
*) echo "$@" >> ~/scontrol.called ;;
esac
"""


@dataclass(kw_only=True)
class Slurm:
    """The first node of an allocation of two."""

    first: Host
    second: Host
    logs: Path

    def start(self, name: str, arguments: str) -> subprocess.Popen[bytes]:
        """The batch script, as slurmd runs it."""
        environment = " ".join(f'{key}="{value}"' for key, value in JOB.items())
        line = (
            f"set -a; . ./storage.env; {environment}; PATH=$HOME/bin:$PATH; exec bash -c 'bash resnet-ray/infra/slurm"
        )
        return self.first.start(f"{line}/train.sbatch {arguments}'", self.logs / f"{name}.log")

    def output(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def run_folder(self, name: str) -> dict[str, list[int]]:
        command = f"set -a; . ./storage.env; cd resnet-ray; python -m tests.cluster.probe {STORAGE}/runs/{name}"
        told: dict[str, list[int]] = json.loads(self.first.run(command).stdout)
        return told


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    logs = tmp_path_factory.mktemp("slurm")
    with network() as lan:
        _, secrets = serve_bucket(lan, logs)
        hosts = {name: lan.boot(name, address) for name, address in ADDRESSES.items()}
        known = "\n".join(f"{address} {name}" for name, address in ADDRESSES.items())
        for host in hosts.values():
            host.run(f"mkdir resnet-ray bin && ln -s {ROOT}/.venv resnet-ray/.venv")
            host.clone()
            host.run(f"umask 077; printf %s '{secrets}' > storage.env; mkdir -p .ray; printf %064d 7 > .ray/auth_token")
            host.run(f"echo '{known}' >> /etc/hosts", user="root")
        for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
            hosts["node1"].run(f"cat > bin/{name} << 'END'\n{program}END\nchmod +x bin/{name}")
        yield Slurm(first=hosts["node1"], second=hosts["node2"], logs=logs)


RUN = f"mnist5k --set run.home={STORAGE}/runs --set data.uri={STORAGE}/data/mnist5k --set run.name=slurm "
RUN += "--set run.num_workers=2 --set run.use_gpu=false --set run.register_as= "
LONG = RUN + "--set schedule.length=12 --set run.checkpoint_every_steps=1000"


def test_a_job_that_is_told_to_end_commits_and_resumes_when_it_is_requeued(slurm: Slurm) -> None:
    job = slurm.start("first", LONG)
    wait_until(
        lambda: bool(re.search(r"step [1-9]\d*/675", slurm.output("first"))), 240, "step", lambda: slurm.output("first")
    )
    assert "--exclude=node1" in slurm.first.run("cat srun.called").stdout
    assert slurm.second.run("pgrep -c raylet").stdout.strip() == "1"
    slurm.first.run("pkill -TERM -f '^bash resnet-ray/infra/slurm/train.sbatch'")  # as --signal=B:TERM@300
    job.wait(120)
    step = int(
        re.findall(
            r"checkpoint of step (\d+) committed before stopping|interrupted at step (\d+)", slurm.output("first")
        )[-1][-1]
        or 0
    )
    told = slurm.output("first")
    assert job.returncode == 128 + signal.SIGINT, told[-3000:]
    assert slurm.run_folder("slurm")["steps"][-1] == step, told[-3000:]
    assert slurm.first.run("cat scontrol.called").stdout == "requeue 4711\n"
    wait_until(lambda: slurm.second.run("pgrep raylet", check=False).stdout == "", 90, "end of the other raylet")

    again = slurm.start("again", LONG)
    assert again.wait(400) == 0, slurm.output("again")[-3000:]
    assert f"from step {step}" in slurm.output("again")
    assert slurm.run_folder("slurm")["steps"][-1] == 675
    assert slurm.first.run("cat scontrol.called").stdout == "requeue 4711\n"  # not once more
