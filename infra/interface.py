"""The network interface that leads to a host: `python infra/interface.py HOST` prints its name.

gloo and NCCL take the interface that a machine's own name stands for, or guess: with Docker's bridge, or Debian's
127.0.1.1, they guess wrong. A node that starts Ray names the one that leads to the head.
"""

from __future__ import annotations

import argparse
import socket
import sys

import psutil

_ANY_PORT = 9  # nothing is sent: connecting a datagram socket only asks the kernel for the route


def own_address(host: str) -> str:
    """Return the address from which this machine reaches `host`, a name or an address; "" if it does not."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def interface_to(host: str) -> str:
    """Return the name of the interface from which this machine reaches `host`; "" if no interface does."""
    return interface_of(own_address(host))


def interface_of(address: str) -> str:
    """Return the name of this machine's network interface with the address; "" if none has it."""
    found = psutil.net_if_addrs().items()
    return next((name for name, bound in found if any(each.address == address for each in bound)), "")


def main() -> None:
    """Print the name, or fail in one line."""
    parser = argparse.ArgumentParser(prog="python infra/interface.py", description="Which interface leads there.")
    parser.add_argument("host", help="name or address, such as the head's")
    parser.add_argument("--own-address", action="store_true", help="print this machine's address on that interface")
    arguments = parser.parse_args()
    found = own_address(arguments.host) if arguments.own_address else interface_to(arguments.host)
    if not found:
        sys.exit(f"error: no network interface of this machine leads to {arguments.host}")
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
