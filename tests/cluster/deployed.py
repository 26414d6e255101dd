"""The cluster of `infra/local-cluster.yaml` on hosts of our own, and a laptop that speaks to it as a user does."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.hosts import ROOT, Host, Network, network
from tests.waiting import wait_until

FILE = "infra/local-cluster.yaml"
DASHBOARD, MLFLOW = "8265/api/version", "5000/health"  # ports of the head, and pages that tell whether it is there
STORAGE = "s3://resnet-ray"
BUCKET_ADDRESS = "10.78.0.50"
_ENVIRONMENT = (
    "cd ~/resnet-ray; export RAY_UP_enable_autoscaler_v2=0 RAY_AUTH_MODE=token RAY_ADDRESS=http://127.0.0.1:8265 "
    "RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1 COLUMNS=200; "
)
_STORAGE_ENV = f"""RESNET_RAY_STORAGE={STORAGE}
AWS_ENDPOINT_URL=http://HEAD:8333
AWS_ACCESS_KEY_ID=resnet-ray
AWS_SECRET_ACCESS_KEY={"5ec7e7" * 8}
AWS_DEFAULT_REGION=us-east-1
"""


@dataclass(kw_only=True)
class Cluster:
    """What `ray up` made."""

    network: Network
    laptop: Host
    head: Host
    workers: list[Host]
    logs: Path

    def user(self, line: str, timeout: float = 120, check: bool = True) -> str:
        """What a user's command prints, on the laptop."""
        done = self.laptop.run(_ENVIRONMENT + line, timeout=timeout, check=check)
        return done.stdout + done.stderr

    def up(self) -> None:
        """`ray up` with the code as it is on the laptop, until all nodes are there."""
        with (self.logs / "up.log").open("a") as log:
            log.write(self.user(f"python infra/cluster.py export && ray up -y {FILE}", timeout=200))
        wait_until(lambda: self.nodes() == 1 + len(self.workers), 240, "workers", self._monitor, every=3)

    @contextmanager
    def tunnel(self, page: str, options: str = "") -> Iterator[None]:
        """`ray dashboard`, which brings a port of the head to the laptop, until the block ends."""
        command = _ENVIRONMENT + f"ray dashboard {FILE} {options}"
        process = self.laptop.start(command, self.logs / f"tunnel-{page.split('/')[0]}.log")
        try:
            self.await_answer(page)
            yield
        finally:
            process.kill()
            process.wait()

    def await_answer(self, page: str) -> None:
        knock = f'curl -sfo /dev/null -H "Authorization: Bearer $(cat ~/.ray/auth_token)" http://127.0.0.1:{page}'
        wait_until(lambda: self.laptop.run(knock, check=False).returncode == 0, 60, f"answer of {page}")

    def submit(self, line: str, name: str, timeout: float = 580) -> Job:
        """`ray job submit`, with its output followed."""
        log = self.logs / f"{name}.log"
        submission = f"--submission-id {name} " if "--submission-id" not in line else ""
        command = line.replace("ray job submit ", f"ray job submit {submission}", 1)
        return Job(name=name, process=self.laptop.start(_ENVIRONMENT + command, log), log=log, cluster=self)

    def on_head(self, line: str, timeout: float = 60) -> str:
        """What a command prints on the head, in the environment of the cluster's nodes."""
        return self.head.run(f"cd ~/resnet-ray; . infra/node.sh; {line}", timeout=timeout).stdout

    def run_folder(self, name: str) -> dict[str, Any]:
        """What `tests.cluster.probe` says of a run."""
        told: dict[str, Any] = json.loads(self.on_head(f"python -m tests.cluster.probe {STORAGE}/runs/{name}"))
        return told

    def nodes(self) -> int:
        """Ray nodes that are alive, by `ray status`."""
        status = self.on_head("ray status 2>&1 || true")
        active = re.search(r"Active:\n((?: .*\n)*)Pending", status)
        found = re.findall(r"^ (\d+) local\.cluster\.node", active[1] if active else "", re.MULTILINE)
        return sum(map(int, found))

    def sessions(self) -> list[str]:
        """The session of Ray that each node belongs to, or belonged to last."""
        hosts = (self.head, *self.workers)
        return [host.run("basename $(realpath /tmp/ray/session_latest)").stdout.strip() for host in hosts]

    def _monitor(self) -> str:
        return self.head.run("tail -n 40 /tmp/ray/session_latest/logs/monitor.out", check=False).stdout

    def reboot(self, host: Host) -> Host:
        """The machine again, with its disk, as if somebody had switched it on."""
        again = self.network.boot(host.name, host.address)
        self.workers = [again if each.name == host.name else each for each in self.workers]
        return again

    def replace_head(self) -> None:
        """Another machine at the head's address, with an empty disk."""
        self.head.pull_the_plug()
        self.head = self.network.boot("new-head", self.head.address)
        prepare(self.head)


def serve_bucket(lan: Network, logs: Path) -> tuple[Host, str]:
    """Return a new host that serves S3, and what its clients have in their environment."""
    host = lan.boot("bucket", BUCKET_ADDRESS)
    prepare(host)
    host.clone()
    secrets = _STORAGE_ENV.replace("HEAD", host.address)
    host.run(f"umask 077; printf %s '{secrets}' > storage.env")
    serve = f"set -a; . ./storage.env; cd resnet-ray; python -m tests.cluster.bucket {host.address}:8333 resnet-ray"
    host.start(serve, logs / "bucket.log")
    knock = f"curl -so /dev/null http://{host.address}:8333"
    wait_until(lambda: host.run(knock, check=False).returncode == 0, 60, "answer of S3")
    return host, secrets


@dataclass(kw_only=True)
class Job:
    """A job on the cluster, as `ray job submit` shows it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    cluster: Cluster

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def await_line(self, pattern: str, timeout: float) -> re.Match[str]:
        """The newest line that matches, once there is one."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            found[:] = list(re.finditer(pattern, self.output()))
            return bool(found) or self.process.poll() is not None

        wait_until(there, timeout, f"{pattern!r} in the log of {self.name}", self.output)
        assert found, f"{self.name} ended without {pattern!r}:\n{self.output()[-4000:]}"
        return found[-1]

    def finished(self, timeout: float = 580) -> str:
        """Its output, when it has ended well."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"{self.name} takes too long:\n{self.output()[-4000:]}") from None
        assert status == 0, self.output()[-6000:]
        return self.output()


def prepare(host: Host) -> None:
    """Give a new host the folder of the checkout, with this machine's packages in it."""
    host.run(f"mkdir resnet-ray && ln -s {ROOT}/.venv resnet-ray/.venv")


@contextmanager
def deployed(logs: Path, *, bucket_elsewhere: bool = False) -> Iterator[Cluster]:
    """Three hosts and a laptop, `ray up`, and a tunnel to the head; without `ray down`.

    With `bucket_elsewhere` the S3 server is on a further host, and the head backs MLflow's database up there.
    """
    provider = yaml.safe_load((ROOT / FILE).read_text())["provider"]
    with network() as lan:
        head = lan.boot("head", provider["head_ip"])
        workers = [lan.boot(f"worker{n}", address) for n, address in enumerate(provider["worker_ips"], 1)]
        laptop = lan.boot("laptop", provider["head_ip"].rsplit(".", 1)[0] + ".99")
        cluster = Cluster(network=lan, laptop=laptop, head=head, workers=workers, logs=logs)
        for host in (head, *workers, laptop):
            prepare(host)
        laptop.clone()
        laptop.run("git init -q resnet-ray")  # a clone has its repository
        # the environment of this checkout is as new as its lock, wherever git has put the file's date
        laptop.run("touch -d 2020-01-01 resnet-ray/requirements.lock; mkdir -p .config/resnet-ray")
        secrets = _STORAGE_ENV.replace("HEAD", head.address)
        if bucket_elsewhere:
            _, secrets = serve_bucket(lan, logs)
            laptop.run(f"sed -i 's#--s3 ~/resnet-ray-state/s3#--backup resnet-ray-local#' resnet-ray/{FILE}")
        laptop.run(f"umask 077; printf %s '{secrets}' > .config/resnet-ray/storage.env")
        cluster.user("ray get-auth-token --generate")
        cluster.up()
        with cluster.tunnel(DASHBOARD):
            yield cluster
