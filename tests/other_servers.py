"""Servers by others, each behind the same small interface: aiosmtpd as it comes, and Twisted's."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from asyncio import Server as AsyncioServer
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session

from django_lettermint import pool
from tests.certificates import NAMES, authority, ca_file, server_context

USER = "lettermint"
TOKEN = "lm_other-token"


@dataclass(kw_only=True)
class Server:
    """A server: how to reach it and, once it has ended, what it took."""

    security: str
    port: int
    #: (recipient, content) of each copy.
    taken: list[tuple[str, str]] = field(default_factory=list)

    def options(self, **others: object) -> dict[str, object]:
        """Return the backend options that reach this server, and the others given."""
        return {
            "api_token": TOKEN,
            "host": "127.0.0.1",
            "port": self.port,
            "security": self.security,
            "ca_file": ca_file(),
            # Neither knows keys.
            "idempotency": False,
            **others,
        }

    @property
    def delivered(self) -> Counter[str]:
        """Return how many messages each recipient got."""
        return Counter(who for who, _ in self.taken)


@contextmanager
def aiosmtpd(security: str) -> Iterator[Server]:
    """Run aiosmtpd's own Controller."""
    server = Server(security=security, port=0)
    context = server_context("good")
    # It takes implicit TLS for none.
    tls: dict[str, Any] = {"ssl_context": context, "auth_require_tls": False}
    starttls: dict[str, Any] = {"tls_context": context, "require_starttls": True}
    controller = _AnyPort(
        _Handler(server),
        hostname="127.0.0.1",
        port=0,
        authenticator=_authenticate,
        **(tls if security == "tls" else starttls),
    )
    controller.start()
    server.port = controller.port
    try:
        yield server
    finally:
        # It waits for its clients to leave.
        pool.close_pools()
        controller.stop()


class _AnyPort(Controller):
    def _trigger_server(self) -> None:
        # It tries its own port, and does not expect to have got another than it asked for.
        assert isinstance(self.server, AsyncioServer)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


class _Handler:
    def __init__(self, server: Server) -> None:
        self.server = server

    async def handle_MAIL(
        self,
        _server: Any,
        session: Session,
        envelope: Envelope,
        address: str,
        options: Any,
    ) -> str:
        if not session.authenticated:
            return "530 5.7.0 log in first"
        if address.startswith("banned"):
            return "550 5.7.1 banned"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 ok"

    async def handle_RCPT(
        self,
        _server: Any,
        _session: Any,
        envelope: Envelope,
        address: str,
        _options: Any,
    ) -> str:
        if address.startswith("nobody"):
            return "550 5.1.1 nobody"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        content = envelope.content.decode().replace("\r\n", "\n")
        self.server.taken.extend((who, content) for who in envelope.rcpt_tos)
        return "250 2.0.0 ok"


def _authenticate(
    _server: Any, _session: Any, _envelope: Any, _mechanism: str, login: LoginPassword
) -> AuthResult:
    right = (login.login, login.password) == (USER.encode(), TOKEN.encode())
    # "Handled" would mean that the client has its reply.
    return AuthResult(success=right, handled=False)


@contextmanager
def twisted(security: str) -> Iterator[Server]:
    """Run Twisted's server in a process of its own: its reactor cannot be started twice."""
    chain = authority().issue_cert(*NAMES).private_key_and_cert_chain_pem
    with chain.tempfile() as path:
        command = [sys.executable, "-m", "tests.twisted_smtpd", USER, TOKEN, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            server = Server(
                security=security, port=json.loads(process.stdout.readline())[security]
            )
            reader = threading.Thread(target=_read, args=(process.stdout, server))
            reader.start()
            try:
                yield server
            finally:
                process.terminate()
                # Before the pipe it reads from is closed.
                reader.join(10)


def _read(lines: Iterable[str], server: Server) -> None:
    for line in lines:
        mail = json.loads(line)
        server.taken.append((mail["to"], mail["content"]))
