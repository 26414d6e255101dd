"""Machines made of Linux namespaces: own network, processes, mounts and host name, one read-only disk underneath.

A host is a process in new namespaces whose `/` is an overlay over this machine's: what it writes goes to a folder that
outlives the host, but not the network. All of them hang on a bridge that stands in a network namespace of its own, so
this machine's network is not touched. Killing a host's first process is pulling its plug: the kernel ends every process
of it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USER, UID = "ray", 7700
HOME = Path("/home", USER)
_TOOLS = ("ip", "nsenter", "unshare", "sshd", "ssh-keygen", "rsync", "useradd", "make")

_TILL_WE_DIE = ("setpriv", "--pdeathsig", "KILL", "--")
# Nothing goes there: Ray asks the kernel from which address it would, and takes that for the machine's.
_WAY_OUT = "ip route add 8.8.8.8 dev eth0"
_BOOT = """
set -e
mount --make-rprivate /
mkdir -p "$DISK/upper" "$DISK/work" "$DISK/root"
mount -t overlay -o lowerdir=/,upperdir="$DISK/upper",workdir="$DISK/work" overlay "$DISK/root"
cd "$DISK/root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
for private in tmp run dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$private"; done
for secret in root/.ssh root/.ray root/.config root/.cache; do
    if test -d "$secret"; then mount -t tmpfs tmpfs "$secret"; fi
done
chmod 711 root
hostname "$NAME"
mkdir -m 755 run/sshd
if ! test -d "home/$LOGIN/.ssh"; then
    chroot . useradd --uid "$NUMBER" --password "*" --shell /bin/bash --create-home "$LOGIN"
    mkdir -m 700 "home/$LOGIN/.ssh"
    cp "$KEYS"/* "home/$LOGIN/.ssh/"
    chown -R "$NUMBER:$NUMBER" "home/$LOGIN"
fi
chroot . ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key
touch run/booted
exec chroot . /usr/sbin/sshd -D -f /dev/null -h /run/sshd/key -o PidFile=none -o UsePAM=no \\
    -o PasswordAuthentication=no -o PrintMotd=no -o UseDNS=no -o MaxStartups=100 2> run/sshd/log
"""


def missing() -> str:
    """Why hosts cannot be made here, or "" if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are made of namespaces, which takes root on Linux"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"no {', '.join(absent)} here: install openssh-server, rsync and iproute2" if absent else ""


@dataclass(kw_only=True)
class Host:
    """A running machine."""

    name: str
    address: str
    pid: int  # of its first process, as this machine counts

    def command(self, line: str, *, user: str = USER) -> list[str]:
        """What runs a line of shell on it, from this machine."""
        uid = UID if user == USER else 0
        home = HOME if user == USER else Path("/root")
        inside = ["nsenter", "--target", str(self.pid), "--all", "--root", "--wd", f"--setuid={uid}", f"--setgid={uid}"]
        clean = ["env", "-i", f"HOME={home}", f"USER={user}", "TERM=dumb", "LANG=C.UTF-8"]
        path = f"export PATH={ROOT}/.venv/bin:/usr/sbin:/usr/bin:/bin"
        return [*inside, "--", *clean, "bash", "-c", f"{path}; cd; {line}"]

    def run(
        self, line: str, *, user: str = USER, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(line, user=user), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(
                f"{self.name}: {line}\n-> {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return done

    def start(self, line: str, log: Path) -> subprocess.Popen[bytes]:
        """A line that goes on running; its output goes to `log`, on this machine."""
        with log.open("wb") as out:
            return subprocess.Popen(self.command(line), stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def clone(self, folder: str = "resnet-ray") -> None:
        """A copy of this checkout, as it is, without what git ignores."""
        listed = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            check=True,
        ).stdout
        present = b"\0".join(name for name in listed.split(b"\0") if name and Path(ROOT, name.decode()).is_file())
        packed = subprocess.run(
            ["tar", "-C", ROOT, "--null", "-T", "-", "-c"], input=present, capture_output=True, check=True
        ).stdout
        command = self.command(f"mkdir -p {folder} && tar -x --no-same-owner -C {folder}")
        subprocess.run(command, input=packed, check=True)

    def pull_the_plug(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@dataclass(kw_only=True)
class Network:
    """The bridge, the key that opens every host, and the hosts."""

    switch: int  # pid of the process that holds the bridge's namespace
    folder: Path
    hosts: ExitStack

    def boot(self, name: str, address: str) -> Host:
        """A machine, new or with the disk of the one that had its name; it is gone when the network is."""
        return self.hosts.enter_context(self._booted(name, address))

    @contextmanager
    def _booted(self, name: str, address: str) -> Iterator[Host]:
        disk = self.folder / name
        disk.mkdir(exist_ok=True)
        environment = {
            **{"DISK": str(disk), "NAME": name, "LOGIN": USER, "NUMBER": str(UID), "KEYS": str(self.folder / "keys")},
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            parent = subprocess.Popen(
                [
                    *_TILL_WE_DIE,
                    *("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child"),
                    *("sh", "-c", _BOOT),
                ],
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            pid = _only_child(parent)
            host = Host(name=name, address=address, pid=pid)
            self._plug_in(host)
            _await(lambda: host.run("test -S /run/booted -o -e /run/booted", user="root", check=False).returncode == 0)
            yield host
        finally:
            parent.kill()
            parent.wait()

    def _plug_in(self, host: Host) -> None:
        port = f"v{host.address.replace('.', '')[-8:]}"
        within = ["nsenter", "--net", "--target", str(self.switch), "--"]
        # of a host that had the address and whose network is still being taken down
        subprocess.run([*within, "ip", "link", "delete", port], check=False, stderr=subprocess.DEVNULL)
        for line in (
            f"ip link add {port} type veth peer name eth0 netns {host.pid}",
            f"ip link set {port} master lan up",
        ):
            subprocess.run([*within, *shlex.split(line)], check=True)
        inside = ["nsenter", "--net", "--target", str(host.pid), "--"]
        for line in (
            "ip link set lo up",
            f"ip address add {host.address}/24 dev eth0",
            "ip link set eth0 up",
            _WAY_OUT,
        ):
            subprocess.run([*inside, *shlex.split(line)], check=True)


@contextmanager
def network() -> Iterator[Network]:
    """A private network without hosts; on leaving, every host and everything that ran on them is gone."""
    with tempfile.TemporaryDirectory(prefix="resnet-ray-hosts-") as folder, ExitStack() as hosts:
        keys = Path(folder, "keys")
        keys.mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id_ed25519"], check=True)
        shutil.copy(keys / "id_ed25519.pub", keys / "authorized_keys")
        (keys / "config").write_text("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n")
        switch = subprocess.Popen(
            [*_TILL_WE_DIE, "unshare", "--net", "--kill-child", "--fork", "sleep", "infinity"], cwd="/"
        )
        hosts.callback(switch.wait)
        hosts.callback(switch.kill)
        pid = _only_child(switch)
        for line in ("ip link add lan type bridge", "ip link set lan up"):
            subprocess.run(["nsenter", "--net", "--target", str(pid), "--", *shlex.split(line)], check=True)
        yield Network(switch=pid, folder=Path(folder), hosts=hosts)


def _only_child(parent: subprocess.Popen[bytes]) -> int:
    """Pid of what `unshare --fork` runs."""
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    _await(lambda: bool(children.read_text().split()) and parent.poll() is None)
    return int(children.read_text().split()[0])


def _await(condition: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a host did not boot")
        time.sleep(0.05)
