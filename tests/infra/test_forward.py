"""What is bound to loopback, shown at another address, byte for byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from infra.errors import UserError
from infra.head import forwarded

SIZE = 3_000_000


@contextmanager
def echo() -> Iterator[tuple[str, int]]:
    """Sends back what it gets, once the other side has said that it is done."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()


def answer(connection: socket.socket) -> None:
    with connection:
        data = b""
        while len(data) < SIZE:
            data += connection.recv(2**16)
        connection.sendall(data[::-1])


def free() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        name: tuple[str, int] = probe.getsockname()
        return name


def test_what_is_sent_arrives_and_so_does_the_answer() -> None:
    sent, listen = bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256), free()
    with echo() as target, forwarded(listen, target):
        for _ in range(3):
            with socket.create_connection(listen, timeout=10) as client:
                client.sendall(sent)
                received = b""
                while part := client.recv(2**16):
                    received += part
            assert received == sent[::-1]


def test_where_nobody_listens_behind_it_the_connection_is_closed() -> None:
    listen = free()
    with forwarded(listen, free()), socket.create_connection(listen, timeout=10) as client:
        assert client.recv(1) == b""


def test_an_address_of_another_machine_is_a_users_error() -> None:
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1:8333"), forwarded(("192.0.2.1", 8333), free()):
        pass
