"""A TCP port of one address passed on to another, byte for byte: what is bound to loopback, shown to one network."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infra.errors import UserError

_CHUNK_BYTES = 2**18
_START_TIMEOUT_S = 10.0
Address = tuple[str, int]


@contextmanager
def forwarded(listen: Address, target: Address) -> Iterator[None]:
    """Pass connections to `listen` on to `target` until the block ends.

    Raises:
        UserError: `listen` is taken, or not an address of this machine.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="forward", daemon=True).start()
    serving = asyncio.start_server(lambda *ends: _passed_on(target, *ends), *listen)
    try:
        server = asyncio.run_coroutine_threadsafe(serving, loop).result(_START_TIMEOUT_S)
    except OSError as error:
        raise UserError(f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror}") from error
    try:
        yield
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)


async def _passed_on(target: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there, back = await asyncio.open_connection(*target)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copied(reader, back), _copied(there, writer))


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()
