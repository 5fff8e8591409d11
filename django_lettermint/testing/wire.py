"""One connection below the commands: its life, TLS, who may say what, and gathered replies."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiosmtpd.smtp import SMTP, Envelope, Session

from .handler import Handler

if TYPE_CHECKING:
    from .ledger import Ledger
    from .policy import Policy

_Command = Callable[[str | None], Awaitable[None]]

_BEFORE_TLS = frozenset({"EHLO", "HELO", "NOOP", "STARTTLS", "QUIT"})
_BEFORE_AUTH = _BEFORE_TLS | {"AUTH", "RSET", "HELP"}
#: Replies that cannot wait for others: TLS or the end of the connection follows.
_AT_ONCE = ("220", "221", "421", "502")
#: For the refusals that aiosmtpd writes without an enhanced code.
_ENHANCED = {
    "500": "5.5.2",
    "501": "5.5.4",
    "502": "5.5.1",
    "503": "5.5.1",
    "504": "5.5.4",
    "552": "5.3.4",
    "553": "5.1.3",
    "555": "5.5.4",
}
_BARE_REFUSAL = re.compile(r"(5\d\d) (?!\d\.\d)")


class Transaction(Envelope):
    """aiosmtpd's envelope with the chunks of BDAT."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[bytes] = []
        #: A chunk was refused: nothing more is taken before RSET (RFC 3030 section 2).
        self.broken = False


class Wire(SMTP):
    """What all commands of a connection stand on."""

    envelope: Transaction
    session: Session
    _handler_coroutine: asyncio.Task[None]
    #: What the client has logged in with.
    token: str | None = None
    #: Counts the relay's connections.
    number = 0

    def __init__(
        self,
        policy: Policy,
        ledger: Ledger,
        context: ssl.SSLContext,
        security: str,
        live: set[Wire],
    ) -> None:
        # It is the limit of the stream's buffer too: big messages are read in one go.
        self.line_length_limit = policy.max_size + 65536
        super().__init__(
            Handler(policy, ledger),
            hostname="localhost",
            ident="ESMTP",
            data_size_limit=policy.max_size,
            enable_SMTPUTF8="SMTPUTF8" in policy.features,
            timeout=policy.idle_timeout,
            loop=asyncio.get_running_loop(),
        )
        # SMTP has one for all connections, which each EHLO changes.
        self.command_size_limits = defaultdict(lambda: 4096)
        self.gone = self.loop.create_future()
        self.policy = policy
        self.ledger = ledger
        self._context = context
        self.security = security
        self._live = live
        #: It is one of the open connections in the statistics.
        self._counted = False
        self._pending: list[str] = []
        #: Something was written since the client last wrote.
        self._answered = False
        self._waiting = True
        self._smtp_methods = {
            verb: self._guarded(verb, command)
            for verb, command in self._smtp_methods.items()
            if verb != "BDAT" or "CHUNKING" in policy.features
        }

    def _create_envelope(self) -> Transaction:
        return Transaction()

    def _guarded(self, verb: str, command: _Command) -> _Command:
        async def guarded(argument: str | None) -> None:
            self.ledger.commands[verb] += 1
            if self.session.ssl is None and verb not in _BEFORE_TLS:
                await self.push("530 5.7.0 Must issue a STARTTLS command first")
            elif self.token is None and verb not in _BEFORE_AUTH:
                await self.push("530 5.7.0 Authentication required")
            else:
                await command(argument)

        return guarded

    # Life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._live.add(self)
        self.number = self.ledger.connected()
        self._counted = True

    def data_received(self, data: bytes) -> None:
        if self._answered and self._waiting:
            self._answered = False
            self.ledger.counts["round_trips"] += 1
        super().data_received(data)

    async def smtp_QUIT(self, arg: str | None) -> None:  # noqa: N802
        if not arg:
            # Before the reply: who has read it may open the next connection at once.
            self._leave()
        await super().smtp_QUIT(arg)

    def _leave(self) -> None:
        if self._counted:
            self._counted = False
            self.ledger.disconnected()

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._live:
            self._live.discard(self)
            self._leave()
            self.gone.set_result(None)
            super().connection_lost(error)

    @contextmanager
    def client_writes_on(self) -> Iterator[None]:
        """Count no round trip for octets that the client sends without having waited."""
        self._waiting = False
        yield
        self._waiting, self._answered = True, False

    def abort(self) -> None:
        # In the middle of a handshake the task must be ended first: start_tls() takes an
        # aborted transport for success.
        self._handler_coroutine.cancel()
        self._writer.transport.abort()

    def _reset(self) -> None:
        self.envelope = Transaction()

    # Replies

    async def push(self, status: str | bytes) -> None:
        """Gather the replies to a group of commands in one write (RFC 2920 section 3.2)."""
        reply = status.decode() if isinstance(status, bytes) else status
        bare = _BARE_REFUSAL.match(reply)
        if bare is not None and bare[1] in _ENHANCED:
            reply = f"{bare[1]} {_ENHANCED[bare[1]]} {reply[4:]}"
        self._pending.append(f"{reply}\r\n")
        if reply.startswith(_AT_ONCE):
            self._flush()
        elif len(self._pending) == 1:
            # Commands that are already here are worked off before the loop turns.
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._pending and not self._writer.is_closing():
            self._writer.write("".join(self._pending).encode())
            self._answered = True
        self._pending.clear()

    # TLS

    async def _handle_client(self) -> None:
        # Not by the server's own `ssl`: there, connections are out of reach, and outlive
        # a stop, until their handshake is done.
        if self.security == "starttls" or await self._secure():
            await super()._handle_client()

    async def smtp_STARTTLS(self, arg: str | None) -> None:  # noqa: N802
        if arg:
            await self.push("501 5.5.4 STARTTLS takes no argument")
            return
        if self.session.ssl is not None or "STARTTLS" not in self.policy.features:
            await self.push("503 5.5.1 STARTTLS is not offered")
            return
        await self.push("220 2.0.0 Ready to start TLS")
        # What came in clear behind the command is not to be believed (RFC 3207 section 5).
        self._reader._buffer.clear()  # type: ignore[attr-defined]  # noqa: SLF001
        if await self._secure():
            peer = self.session.peer
            self.session = self._create_session()
            self.session.peer, self.session.ssl = peer, {}
            self._reset()

    async def _secure(self) -> bool:
        """Do the handshake; without success the connection is gone."""
        try:
            await self._writer.start_tls(self._context)
        except (OSError, asyncio.CancelledError):
            # The client turned the certificate away or went, or the relay stops. The socket
            # is closed, but nobody else tells aiosmtpd, whose loop would read on.
            self.connection_lost(None)
            return False
        self.transport = self._writer.transport
        self.session.ssl = {}
        return True
