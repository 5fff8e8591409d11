"""Clients for the relay that share no code with it or with the package."""

from __future__ import annotations

import base64
import smtplib
import socket
import ssl
from typing import Protocol, Self

MESSAGE = (
    b"From: sender@example.com\r\nTo: user@example.com\r\nSubject: Hi\r\n\r\nHello.\r\n"
)
#: A message that breaks a rule.
WRONG = b"X-LM-Tag: a@b\r\n" + MESSAGE


class Server(Protocol):
    """A Relay, or one in another process."""

    @property
    def ca_file(self) -> str: ...

    def port(self, security: str) -> int: ...


def trust(relay: Server) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=relay.ca_file)


def anonymous(relay: Server, security: str = "tls") -> smtplib.SMTP:
    """Return smtplib's client after EHLO, under TLS where the port has it."""
    port = relay.port(security)
    connection: smtplib.SMTP
    if security == "tls":
        connection = smtplib.SMTP_SSL(
            "localhost", port, context=trust(relay), timeout=10
        )
    else:
        connection = smtplib.SMTP("localhost", port, timeout=10)
    if security == "starttls":
        connection.starttls(context=trust(relay))
    connection.ehlo()
    return connection


def client(
    relay: Server, security: str = "tls", token: str = "lm_test_token"
) -> smtplib.SMTP:
    """Return smtplib's client, logged in."""
    connection = anonymous(relay, security)
    try:
        connection.login("lettermint", token)
    except smtplib.SMTPException:
        connection.close()
        raise
    return connection


def send(
    relay: Server,
    content: bytes = MESSAGE,
    *,
    to: str | tuple[str, ...] = "user@example.com",
    sender: str = "sender@example.com",
    security: str = "tls",
) -> None:
    with client(relay, security) as connection:
        connection.sendmail(sender, to, content)


class RawClient:
    """A socket in clear that writes exactly what it is told to."""

    def __init__(self, relay: Server, *, login: bool = True) -> None:
        address = ("127.0.0.1", relay.port("plaintext"))
        self.socket = socket.create_connection(address, timeout=10)
        self._lines = self.socket.makefile("rb")
        assert self.reply().startswith("220 ")
        if login:
            self.command(b"EHLO client.example.com")
            answer = base64.b64encode(b"\0lettermint\0lm_test_token")
            assert self.command(b"AUTH PLAIN " + answer).startswith("235 ")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lines.close()
        self.socket.close()

    def reply(self) -> str:
        """Read one whole reply; an empty string at the end of the connection."""
        lines = [self._lines.readline()]
        while lines[-1][3:4] == b"-":
            lines.append(self._lines.readline())
        return b"".join(lines).decode().removesuffix("\r\n")

    def command(self, line: bytes) -> str:
        self.socket.sendall(line + b"\r\n")
        return self.reply()

    def codes(self, octets: bytes, count: int) -> list[str]:
        """Write octets, and return the codes of the next `count` replies."""
        self.socket.sendall(octets)
        return [self.reply()[:3] for _ in range(count)]
