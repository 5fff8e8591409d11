"""A small SMTP relay in a process of its own, which counts what it sees.

    python benchmarks/relay.py CA_FILE

Prints a line of JSON with its ports: `starttls`, `tls` and `control`. A line to the control
port is answered by the counters since the line before, as JSON: `turns` (round trips).
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
from collections import Counter
from pathlib import Path

import trustme

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from django_lettermint.testing.server import SMTPServer
from django_lettermint.testing.session import (
    Reply,
    ServerConfig,
    ServerSession,
    SubmittedMessage,
)
from django_lettermint.testing.stream import ServerStream

FEATURES = ("PIPELINING", "8BITMIME", "SIZE 99999999", "SMTPUTF8", "CHUNKING")
TOKEN = "lm_bench"

counters: Counter[str] = Counter()
counting = threading.Lock()


def count(name: str) -> None:
    with counting:
        counters[name] += 1


class Session(ServerSession):
    """Accepts each message and forgets it."""

    def receive(self, message: SubmittedMessage, argument: bytes) -> None:
        """Confirm a message."""
        self.respond("dot", argument, Reply(250, "2.0.0 Queued"))


def serve(ca_file: str) -> SMTPServer:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    config = ServerConfig(
        context=context,
        hostname="bench",
        features=FEATURES,
        mechanisms=("PLAIN", "LOGIN"),
        tokens=(TOKEN,),
        max_size=99_999_999,
    )

    def new_session(sock: socket.socket, security: str, number: int) -> ServerSession:
        stream = ServerStream(sock, on_round_trip=lambda: count("turns"))
        return Session(stream, security, number, config)

    server = SMTPServer(new_session, {"starttls": 0, "tls": 0})
    server.listen()
    return server


def control(listener: socket.socket) -> None:
    while True:
        sock, _ = listener.accept()
        with sock, sock.makefile("rwb") as file:
            for _ in file:
                with counting:
                    file.write(json.dumps(counters).encode() + b"\n")
                    counters.clear()
                file.flush()


def main(ca_file: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ports = serve(ca_file).ports
    print(json.dumps(ports | {"control": listener.getsockname()[1]}), flush=True)
    control(listener)


if __name__ == "__main__":
    main(sys.argv[1])
