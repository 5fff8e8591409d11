"""The commands of one connection that need more than a word in answer: AUTH, DATA, BDAT."""

from __future__ import annotations

import re
from base64 import b64encode

from .authentication import BadExchange, authenticate, decode
from .content import has_long_line, read_chunk, read_dotted
from .ledger import Incoming
from .wire import Transaction, Wire

_BDAT = re.compile(r"(\d{1,12})(?: +(LAST))?", re.IGNORECASE)
_PLAIN_ADDRESS = re.compile(r"<([\w.+-]+@[\w.-]+)>(?: |\Z)", re.ASCII)


class Connection(Wire):
    """The server's side of one connection, on the relay's event loop."""

    async def smtp_AUTH(self, arg: str | None) -> None:  # noqa: N802
        mechanism, _, initial = (arg or "").partition(" ")
        mechanism = mechanism.upper()
        if not self.session.extended_smtp or self.token is not None:
            await self.push("503 5.5.1 AUTH comes once, after EHLO")
            return
        if (
            "AUTH" not in self.policy.features
            or mechanism not in self.policy.mechanisms
        ):
            await self.push("504 5.5.4 Unrecognized authentication type")
            return
        try:
            token = await authenticate(
                self.policy, mechanism, initial or None, self._ask
            )
        except BadExchange as problem:
            token, reply = None, str(problem)
        else:
            reply = "535 5.7.8 Authentication credentials invalid"
        self.token = token
        self.ledger.login(success=token is not None)
        await self.push(
            reply if token is None else "235 2.7.0 Authentication successful"
        )

    async def _ask(self, challenge: bytes) -> bytes:
        await self.push(f"334 {b64encode(challenge).decode()}")
        return decode((await self._reader.readline()).strip())

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        # The full parser behind it costs more than all else that a command needs.
        plain = _PLAIN_ADDRESS.match(arg)
        return (plain[1], arg[plain.end() :]) if plain else super()._getaddr(arg)

    async def smtp_DATA(self, arg: str | None) -> None:  # noqa: N802
        if arg:
            await self.push("501 5.5.4 DATA takes no argument")
        elif not self.envelope.rcpt_tos:
            await self.push("503 5.5.1 No valid recipients")
        elif self.envelope.chunks or self.envelope.broken:
            await self.push("503 5.5.1 DATA cannot follow BDAT")
        else:
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            content = await read_dotted(self._reader, self.policy.max_size)
            await self._finish(content, chunked=False)

    async def smtp_BDAT(self, arg: str | None) -> None:  # noqa: N802
        parts = _BDAT.fullmatch(arg or "")
        if parts is None:
            await self.push("501 5.5.4 BDAT takes a number and perhaps LAST")
            return
        size, last = int(parts[1]), parts[2] is not None
        taken = sum(map(len, self.envelope.chunks))
        # The octets come whatever the reply will be (RFC 3030 section 2).
        with self.client_writes_on():
            chunk = await read_chunk(self._reader, size, self.policy.max_size - taken)
        if not self.envelope.rcpt_tos or self.envelope.broken:
            await self._refuse_chunk(
                "503 5.5.1 No valid recipients, or RSET is needed", last=last
            )
        elif chunk is None:
            await self._refuse_chunk("552 5.3.4 The message is too big", last=last)
        elif last:
            await self._finish(b"".join([*self.envelope.chunks, chunk]), chunked=True)
        else:
            self.envelope.chunks.append(chunk)
            await self.push(f"250 2.0.0 {size} octets received")

    async def _refuse_chunk(self, reply: str, *, last: bool) -> None:
        # The last chunk ends its transaction in any case: with several messages in flight
        # a client could not bring RSET in time.
        if last:
            self._reset()
        else:
            self.envelope.broken = True
        await self.push(reply)

    async def _finish(self, content: bytes | None, *, chunked: bool) -> None:
        envelope = self.envelope
        self._reset()
        if content is None:
            await self.push("552 5.3.4 The message is too big")
        elif has_long_line(content):
            await self.push("500 5.5.2 A line is longer than 998 octets")
        else:
            reply = await self.ledger.receive(
                self._incoming(envelope, content, chunked=chunked)
            )
            if self.ledger.loses_reply():
                self.abort()
            else:
                await self.push(reply)

    def _incoming(
        self, envelope: Transaction, content: bytes, *, chunked: bool
    ) -> Incoming:
        return Incoming(
            mail_from=envelope.mail_from or "",
            recipients=tuple(envelope.rcpt_tos),
            content=content,
            smtputf8=envelope.smtp_utf8,
            body_8bit="BODY=8BITMIME" in envelope.mail_options,
            chunked=chunked,
            connection=self.number,
            security=self.security,
            token=self.token or "",
        )
