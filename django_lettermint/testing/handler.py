"""The relay's answers to the commands that need no bytes off the wire: aiosmtpd's hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope, Session

    from .ledger import Ledger
    from .policy import Policy


class Handler:
    """The judgement of addresses, and the wording of the common replies."""

    def __init__(self, policy: Policy, ledger: Ledger) -> None:
        self._policy = policy
        self._ledger = ledger

    async def handle_EHLO(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        hostname: str,
        lines: list[str],
    ) -> list[str]:
        session.host_name = hostname
        offers = [server.hostname, *self._policy.ehlo(secure=session.ssl is not None)]
        # One item: what is pushed at once goes in one write.
        return [
            "\r\n".join([*(f"250-{line}" for line in offers[:-1]), f"250 {offers[-1]}"])
        ]

    async def handle_MAIL(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        if "BODY=8BITMIME" in options and "8BITMIME" not in self._policy.features:
            return "555 5.5.4 BODY is not offered"
        refusal = _unreachable(envelope, address) or self._ledger.refusal(
            "MAIL", address
        )
        if refusal is not None:
            return refusal
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Sender accepted"

    async def handle_RCPT(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        refusal = _unreachable(envelope, address) or self._ledger.recipient(
            address, len(envelope.rcpt_tos)
        )
        if refusal is not None:
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Recipient accepted"

    async def handle_RSET(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        return "250 2.0.0 Reset"

    async def handle_NOOP(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, argument: str | None
    ) -> str:
        return "250 2.0.0 At your service"

    async def handle_QUIT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        return "221 2.0.0 Bye"


def _unreachable(envelope: Envelope, address: str) -> str | None:
    # RFC 6531 section 3.7.4.2 has 553 5.6.7 for an address that MAIL did not announce.
    if address.isascii() or envelope.smtp_utf8:
        return None
    return "553 5.6.7 A non-ASCII address needs SMTPUTF8"
