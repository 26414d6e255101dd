"""infra/aws/orphan.sh with `pgrep`, `date`, `shutdown` and `systemctl` of ours: when it ends a machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra/aws/orphan.sh"


class Machine:
    """A machine whose clock, raylet and shutdown are files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, line in {
            "pgrep": f'test "$*" = "-x raylet" && test -e {folder}/raylet',
            "date": f"cat {folder}/now",
            "shutdown": f'echo "$@" > {folder}/down',
            "systemctl": f'echo "$@" >> {folder}/systemctl',
        }.items():
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(0o755)

    def run(self, verb: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            **{"STAMP": f"{self.folder}/stamp", "UNITS": str(self.folder), "PROGRAM": f"{self.folder}/program"},
        }
        return subprocess.run(["sh", SCRIPT, verb], env=environment, capture_output=True, text=True, check=False)

    def look(self, minute: float, raylet: bool) -> bool:
        """Whether the machine was told to shut down."""
        (self.folder / "now").write_text(f"{1_700_000_000 + 60 * minute:.0f}")
        (self.folder / "raylet").touch() if raylet else (self.folder / "raylet").unlink(missing_ok=True)
        done = self.run("look")
        assert done.returncode == 0, done.stderr
        return (self.folder / "down").exists()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_worker_that_has_lost_its_ray_ends_after_half_an_hour(machine: Machine) -> None:
    assert not any(machine.look(minute, raylet=True) for minute in range(0, 300, 5))
    assert not any(machine.look(minute, raylet=False) for minute in range(300, 325, 5))
    assert machine.look(325, raylet=False)
    assert (machine.folder / "down").read_text() == "-h now\n"


def test_a_node_whose_setup_never_ends_goes_half_an_hour_after_its_boot(machine: Machine) -> None:
    assert not any(machine.look(minute, raylet=False) for minute in range(5, 35, 5))
    assert machine.look(35, raylet=False)


def test_a_ray_that_comes_back_in_time_keeps_it(machine: Machine) -> None:
    machine.look(0, raylet=True)
    assert not machine.look(25, raylet=False)
    assert not machine.look(28, raylet=True)
    assert not machine.look(55, raylet=False)
    assert machine.look(60, raylet=False)


def test_installing_it_starts_a_timer_that_runs_it(machine: Machine) -> None:
    done = machine.run("install")
    assert done.returncode == 0, done.stderr
    assert (machine.folder / "program").read_bytes() == SCRIPT.read_bytes()
    assert f"ExecStart={machine.folder}/program look" in (machine.folder / "resnet-ray-orphan.service").read_text()
    assert "OnUnitActiveSec=5min" in (machine.folder / "resnet-ray-orphan.timer").read_text()
    assert (machine.folder / "systemctl").read_text().splitlines() == [
        "daemon-reload",
        "enable --quiet --now resnet-ray-orphan.timer",
    ]


def test_what_it_does_not_know_it_refuses(machine: Machine) -> None:
    assert machine.run("remove").returncode == 2
