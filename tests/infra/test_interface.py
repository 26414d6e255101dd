"""The interface that leads to a host, by this machine's own routes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from infra.interface import interface_to, own_address

PROGRAM = Path(__file__).resolve().parents[2] / "infra/interface.py"


def told(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def loopback() -> str:
    return next(
        name for name, bound in psutil.net_if_addrs().items() if "127.0.0.1" in {each.address for each in bound}
    )


def test_loopback_leads_to_this_machine() -> None:
    assert interface_to("127.0.0.1") == interface_to("localhost") == loopback()
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert told("127.0.0.1") == (0, f"{loopback()}\n", "")
    assert told("--own-address", "127.0.0.1")[:2] == (0, "127.0.0.1\n")


def test_a_host_that_does_not_exist_is_named_in_one_line() -> None:
    assert interface_to("no-such-host.invalid") == ""
    status, out, error = told("no-such-host.invalid")
    assert (status, out) == (1, "")
    assert error == "error: no network interface of this machine leads to no-such-host.invalid\n"
