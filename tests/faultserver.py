"""A scriptable SMTP server: real sockets, real TLS, and any fault at any step.

    with FaultServer([On("rcpt", match="bob@", do=reply(550, "5.1.1 no such user"))]) as server:
        backend = EmailBackend(**server.options())
        ...
        assert server.delivered == {"carol@example.org": 1}
        assert server.violations == []

`faults` holds the phases, selectors and actions that a script is made of.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from tests.certificates import ca_file, server_context
from tests.fault_dialogue import Setup
from tests.fault_ledger import Delivery, Ledger, Login
from tests.fault_session import Session
from tests.faults import (
    Action,
    Answer,
    On,
    accept_then,
    drop,
    endless,
    garble,
    gate,
    hang,
    inject,
    normal,
    raw,
    reply,
    stall,
    trickle,
)

__all__ = [
    "TOKEN", "Action", "Answer", "Delivery", "FaultServer", "Login", "On",
    "accept_then", "drop", "endless", "garble", "gate", "hang", "inject", "normal",
    "raw", "reply", "stall", "trickle",
]  # fmt: skip

TOKEN = "lm_fault-server-token"
FEATURES = (
    "PIPELINING",
    "8BITMIME",
    "SMTPUTF8",
    "ENHANCEDSTATUSCODES",
    "SIZE 26214400",
)


class FaultServer:
    """Serve SMTP on a port of 127.0.0.1, and do at each step what the script says.

    `tls` is "implicit", "starttls" or None; `cert` one of `certificates.KINDS`; `rcvbuf` the size
    of the receive buffer in octets; `idempotency` makes the server honour Idempotency-Key,
    and `options()` rely on it.
    """

    def __init__(
        self,
        script: Iterable[On] = (),
        *,
        tls: str | None = "implicit",
        features: Iterable[str] = FEATURES,
        auth: Iterable[str] = ("PLAIN", "LOGIN"),
        cert: str = "good",
        idempotency: bool = False,
        rcvbuf: int | None = None,
        user: str = "lettermint",
        token: str = TOKEN,
    ) -> None:
        self.ledger = Ledger(script, idempotency=idempotency)
        #: The rules, first match first; change them while the server runs if need be.
        self.script = self.ledger.script
        self.deliveries = self.ledger.deliveries
        self.logins = self.ledger.logins
        #: Each command line in order, as (connection, line).
        self.commands = self.ledger.commands
        self.violations = self.ledger.violations
        self.connections = 0
        self.peak_connections = 0
        self._setup = Setup(
            tls=tls,
            features=tuple(features),
            auth=tuple(auth),
            context=server_context(cert),
            user=user,
            token=token,
        )
        self._rcvbuf = rcvbuf
        self._sessions: dict[int, Session] = {}
        self._received: dict[int, bytearray] = {}
        self._threads: list[threading.Thread] = []

    # Life.

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if self._rcvbuf is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._rcvbuf)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._waker = socket.socketpair()
        self._acceptor = threading.Thread(
            target=self._accept, name=f"faultserver-{self.port}"
        )
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse new connections, cut the open ones, and wait for all threads."""
        self.close_door()
        with self.ledger.changed:
            for session in self._sessions.values():
                session.stop()
        for thread in self._threads:
            thread.join(2.0)
            assert not thread.is_alive(), f"{thread.name} does not end"

    def close_door(self) -> None:
        """Refuse new connections; the open ones live on."""
        if self._acceptor.is_alive():
            self._waker.send(b"!")
            self._acceptor.join(2.0)
            for sock in (self._listener, self._wake, self._waker):
                sock.close()

    # What the test does with it.

    def options(self, **others: object) -> dict[str, object]:
        """Return the backend options that reach this server, and the others given."""
        security = {"implicit": "tls", "starttls": "starttls", None: "plaintext"}[
            self._setup.tls
        ]
        return {
            "api_token": self._setup.token,
            "host": "127.0.0.1",
            "port": self.port,
            "security": security,
            "ca_file": ca_file(),
            "idempotency": self.ledger.idempotency,
            **others,
        }

    def act(self, connection: int, action: Action) -> None:
        """Do this on a connection that waits for its client, and return when it is done."""
        with self.ledger.changed:
            session = self._sessions.get(connection)
        if session is None:
            raise LookupError(f"connection {connection} is not open")
        session.act(action(Answer(0, lambda _: None)).play)

    def act_on_all(self, action: Action) -> None:
        """Do this on every open connection."""
        with self.ledger.changed:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.act(action(Answer(0, lambda _: None)).play)

    def wait_for(self, condition: Callable[[], object], timeout: float = 5.0) -> bool:
        """Wait until a condition over this server's record holds; tell whether it came to hold."""
        with self.ledger.changed:
            return bool(self.ledger.changed.wait_for(condition, timeout))

    # What it saw.

    @property
    def delivered(self) -> Counter[str]:
        """How many messages each recipient got."""
        return Counter(
            address for each in list(self.deliveries) for address in each.recipients
        )

    @property
    def replays(self) -> int:
        """How many messages were confirmed, but not delivered again, thanks to their key."""
        return self.ledger.replays

    @property
    def received(self) -> dict[int, bytes]:
        """All that each connection received, after TLS."""
        return {number: bytes(data) for number, data in list(self._received.items())}

    @property
    def open_connections(self) -> int:
        """How many connections neither side has closed."""
        with self.ledger.changed:
            return sum(not session.left() for session in self._sessions.values())

    # Connections.

    def _accept(self) -> None:
        poller = select.poll()
        for sock in (self._listener, self._wake):
            poller.register(sock, select.POLLIN)
        while self._wake.fileno() not in dict(poller.poll()):
            self._welcome(self._listener.accept()[0])

    def _welcome(self, sock: socket.socket) -> None:
        with self.ledger.changed:
            self.connections += 1
            session = Session(sock, self.connections, self._setup, self.ledger)
            self._sessions[session.number] = session
            self._received[session.number] = session.received
            self.peak_connections = max(self.peak_connections, self.open_connections)
            self.ledger.changed.notify_all()
        name = f"faultserver-{self.port}-{session.number}"
        thread = threading.Thread(target=self._serve, args=(session,), name=name)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _serve(self, session: Session) -> None:
        try:
            session.run()
        finally:
            # Out of the count first: a client that sees the close must not find it still open.
            self.ledger.note(lambda: self._sessions.pop(session.number))
            session.close()
