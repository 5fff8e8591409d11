"""The relay's two ports, and the connections behind them, on its event loop."""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import TYPE_CHECKING

from .connection import Connection

if TYPE_CHECKING:
    from .ledger import Ledger
    from .policy import Policy
    from .wire import Wire

_HOST = "127.0.0.1"
#: Seconds that a connection may take to go away.
_PATIENCE = 2.0


class Listeners:
    """Both listeners together; their ports are chosen once and kept."""

    def __init__(self, policy: Policy, ledger: Ledger, context: ssl.SSLContext) -> None:
        self.ports = {"tls": 0, "starttls": 0}
        self._policy = policy
        self._ledger = ledger
        self._context = context
        self._servers: list[asyncio.Server] = []
        self._live: set[Wire] = set()

    async def open(self) -> None:
        for security in self.ports:
            await self._listen(security)

    async def _listen(self, security: str) -> None:
        connection = functools.partial(
            Connection, self._policy, self._ledger, self._context, security, self._live
        )
        # asyncio sets TCP_NODELAY on what it accepts.
        server = await asyncio.get_running_loop().create_server(
            connection, _HOST, self.ports[security]
        )
        self._servers.append(server)
        self.ports[security] = server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        # Server.close() would leak a connection that was accepted just before it, and one
        # without its protocol could not be cut: no more of them, then some turns of the
        # loop for those on their way.
        for server in self._servers:
            for listener in server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
        for _ in range(5):
            await asyncio.sleep(0)
        while self._servers:
            self._servers.pop().close()
        await self.drop()

    async def drop(self) -> None:
        """Cut all connections, and come back when they are gone."""
        gone = [connection.gone for connection in self._live]
        for connection in tuple(self._live):
            connection.abort()
        if gone:
            await asyncio.wait(gone, timeout=_PATIENCE)
