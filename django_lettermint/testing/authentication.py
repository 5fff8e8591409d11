"""Check SMTP credentials: PLAIN, LOGIN and CRAM-MD5."""

from __future__ import annotations

import binascii
import hmac
import secrets
from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .policy import Policy

#: Sends a challenge and returns the client's answer, both still without base64.
Ask = Callable[[bytes], Awaitable[bytes]]


class BadExchange(Exception):
    """The exchange was broken off or cannot be read; the text is the reply."""


async def authenticate(
    policy: Policy, mechanism: str, initial: str | None, ask: Ask
) -> str | None:
    """Return the token that the client proved to know, or None.

    `initial` is the initial response in base64 (RFC 4954 section 4), "=" for an empty one.
    """
    first = (
        None if initial is None else b"" if initial == "=" else decode(initial.encode())
    )
    if mechanism == "PLAIN":
        return _plain(policy, await ask(b"") if first is None else first)
    if mechanism == "LOGIN":
        username = await ask(b"Username:") if first is None else first
        return _known(policy, username, await ask(b"Password:"))
    if first is not None:
        raise BadExchange("501 5.7.0 CRAM-MD5 takes no initial response")
    challenge = f"<{secrets.token_hex(8)}@localhost>".encode()
    return _cram_md5(policy, challenge, await ask(challenge))


def decode(line: bytes) -> bytes:
    """Decode one line of an exchange; raises BadExchange."""
    if line == b"*":
        raise BadExchange("501 5.7.0 Authentication cancelled")
    try:
        return b64decode(line, validate=True)
    except binascii.Error:
        raise BadExchange("501 5.5.2 Not base64") from None


def _plain(policy: Policy, answer: bytes) -> str | None:
    parts = answer.split(b"\0")
    if len(parts) != 3:
        raise BadExchange(
            "501 5.5.2 PLAIN wants authorization id, username and password"
        )
    return _known(policy, parts[1], parts[2])


def _known(policy: Policy, username: bytes, password: bytes) -> str | None:
    if username != policy.username.encode():
        return None
    return next((token for token in policy.tokens if token.encode() == password), None)


def _cram_md5(policy: Policy, challenge: bytes, answer: bytes) -> str | None:
    username, _, digest = answer.partition(b" ")
    if username != policy.username.encode():
        return None
    return next(
        (
            token
            for token in policy.tokens
            if hmac.new(token.encode(), challenge, "md5").hexdigest().encode() == digest
        ),
        None,
    )
