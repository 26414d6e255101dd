"""Find the network interface that leads to a host.

    python infra/interface.py HOST
    python infra/interface.py HOST --own-address

The first command prints the interface's name, such as eth0. The second prints this machine's address on it.

gloo and NCCL use the interface of the machine's own name, or guess. With Docker's bridge, or Debian's 127.0.1.1, the
guess is wrong. So a node that starts Ray names the interface that leads to the head. The script runs before this
project is installed, so it imports none of its modules.
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
    """Print the interface's name, or this machine's address on it.

    Exit with status 1 and one line if no interface leads to the host.
    """
    parser = argparse.ArgumentParser(prog="python infra/interface.py", description="Print the interface to a host.")
    parser.add_argument("host", help="name or address of the host, such as the head")
    parser.add_argument("--own-address", action="store_true", help="print this machine's address on that interface")
    arguments = parser.parse_args()
    found = own_address(arguments.host) if arguments.own_address else interface_to(arguments.host)
    if not found:
        sys.exit(f"error: no network interface of this machine leads to {arguments.host}")
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
