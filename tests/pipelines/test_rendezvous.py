"""The store of torch's ranks: on the address that it was given, and on no other."""

from __future__ import annotations

import psutil
from torch.distributed import TCPStore

from pipelines.rendezvous import serve_store


def listening() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections("inet")
    return {(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}


def test_the_store_listens_on_its_address_only() -> None:
    before = listening()
    port = serve_store("127.0.0.1")
    assert listening() - before == {("127.0.0.1", port)}
    one, other = (TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False) for _ in range(2))
    one.set("here", "first")
    assert other.get("here") == b"first"
