"""Who sends: Django, nodemailer and this package, each as shipped and tuned."""

from __future__ import annotations

import functools
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.backends.smtp import EmailBackend as SMTPBackend

from django_lettermint.backend import EmailBackend

THREADS = 8
#: Connections of those that are tuned.
CONNECTIONS = 10
LINE = "Hello dear reader, this is a line of text for you.\n"
HTML = "<p>Hello dear reader, this is a line of text for you.</p>\n" * 1000
BIG = os.urandom(730_000)

DJANGO, HELD = "Django", "Django, held open"
NODE, NODE_TUNED = "nodemailer", "nodemailer, tuned"
OURS, OURS_TUNED = "ours", "ours, tuned"


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    rtt: int
    mode: str
    size: str = "2 KB"
    server: str = "relay"
    security: str = "starttls"
    #: Messages of a list, if not the usual number.
    limit: int = 0

    @property
    def count(self) -> int:
        """Return the messages of a list."""
        return self.limit or {"2 KB": 100, "100 KB": 25, "1 MB": 10}[self.size]


@dataclass(frozen=True)
class Target:
    """Where to send to."""

    port: int
    ca_file: str
    token: str
    security: str = "starttls"


@dataclass(frozen=True)
class Sent:
    """What a contestant did."""

    messages: int
    seconds: float
    cpu: float


class Mails:
    """Makes messages, each with a subject and addresses of its own."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.number = 0

    def __call__(self) -> EmailMessage:
        self.number = number = self.number + 1
        body = LINE * (38 * 20 if self.cell.size == "100 KB" else 38)
        sender, to = f"sender{number % 7}@example.com", [f"user{number}@example.org"]
        mail = EmailMultiAlternatives(f"Subject {number}", body, sender, to)
        if self.cell.size == "100 KB":
            mail.attach_alternative(HTML, "text/html")
        if self.cell.size == "1 MB":
            mail.attach("a.bin", BIG, "application/octet-stream")
        return mail


SendAll = Callable[[Sequence[EmailMessage]], object]
Contestant = Callable[[Cell, Target, float], Sent]


def drive(cell: Cell, senders: Sequence[SendAll], seconds: float) -> Sent:
    """Send in the cell's mode; of threads, each has a sender of its own."""
    make = Mails(cell)
    began, cpu = time.perf_counter(), time.process_time()
    if cell.mode == "list":
        senders[0]([make() for _ in range(cell.count)])
        messages = cell.count
    else:

        def loop(send: SendAll) -> int:
            sent = 0
            while not sent or time.perf_counter() - began < seconds:
                send([make()])
                sent += 1
            return sent

        if cell.mode == "threads":
            with ThreadPoolExecutor(THREADS) as threads:
                messages = sum(threads.map(loop, senders))
        else:
            messages = loop(senders[0])
    spent = time.process_time() - cpu
    return Sent(messages, time.perf_counter() - began, spent)


class _Django(SMTPBackend):
    """Django's backend, with one TLS context for all connections, unlike as shipped."""

    ca_file = ""

    @property
    def ssl_context(self) -> ssl.SSLContext:  # type: ignore[override]
        return _context(self.ca_file)


@functools.cache
def _context(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def _django(target: Target) -> SMTPBackend:
    keywords: dict[str, Any] = {"alias": "bench"} if django.VERSION >= (6, 1) else {}
    backend = _Django(
        host="127.0.0.1",
        port=target.port,
        username="lettermint",
        password=target.token,
        use_tls=target.security == "starttls",
        use_ssl=target.security == "tls",
        **keywords,
    )
    backend.ca_file = target.ca_file
    return backend


def run_django(cell: Cell, target: Target, seconds: float) -> Sent:
    def send(mails: Sequence[EmailMessage]) -> None:
        _django(target).send_messages(list(mails))

    return drive(cell, [send] * THREADS, seconds)


_held: dict[Target, list[SMTPBackend]] = {}


def run_django_held(cell: Cell, target: Target, seconds: float) -> Sent:
    held = _held.setdefault(target, [])
    while len(held) < (THREADS if cell.mode == "threads" else 1):
        held.append(_django(target))
        held[-1].open()
    return drive(cell, [each.send_messages for each in held], seconds)


def close_held() -> None:
    """Close Django's connections that were held open."""
    for held in _held.values():
        for each in held:
            each.close()
    _held.clear()


def ours(**options: object) -> Contestant:
    def run(cell: Cell, target: Target, seconds: float) -> Sent:
        configure(target, **options)
        # As Django does: a backend for each call.
        return drive(
            cell, [lambda mails: EmailBackend().send_messages(mails)] * THREADS, seconds
        )

    return run


def configure(target: Target, **options: object) -> None:
    """Write the settings of this package that reach a target."""
    settings.ANYMAIL = {
        "LETTERMINT_API_TOKEN": target.token,
        "LETTERMINT_HOST": "127.0.0.1",
        "LETTERMINT_PORT": target.port,
        "LETTERMINT_SECURITY": target.security,
        "LETTERMINT_CA_FILE": target.ca_file,
        # As at lettermint.co; nothing is repeated here.
        "LETTERMINT_IDEMPOTENCY": True,
        **{f"LETTERMINT_{name.upper()}": value for name, value in options.items()},
    }


class Nodemailer:
    """nodemailer's pools, in a process of their own."""

    def __init__(self, node_modules: Path) -> None:
        script = Path(__file__).with_name("nodemailer.js")
        self._node = subprocess.Popen(
            ["node", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "NODE_PATH": str(node_modules)},
            text=True,
        )

    def run(
        self, cell: Cell, target: Target, seconds: float, **pool: int | None
    ) -> Sent:
        task = {
            "port": target.port,
            "ca": target.ca_file,
            "token": target.token,
            "pool": pool,
            "threads": THREADS,
            "mode": cell.mode,
            "count": cell.count,
            "seconds": seconds,
            "size": cell.size,
        }
        assert self._node.stdin
        assert self._node.stdout
        self._node.stdin.write(json.dumps(task) + "\n")
        self._node.stdin.flush()
        answer = json.loads(self._node.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return Sent(answer["messages"], answer["seconds"], answer["cpu"])

    def close(self) -> None:
        assert self._node.stdin
        self._node.stdin.close()
        self._node.wait(10)


@contextmanager
def contestants(node_modules: Path) -> Iterator[dict[str, Contestant]]:
    """Return the contestants, nodemailer only if it is installed."""
    found: dict[str, Contestant] = {
        DJANGO: run_django,
        HELD: run_django_held,
        OURS: ours(),
        OURS_TUNED: ours(batch_connections=CONNECTIONS, pool={"max_messages": 0}),
    }
    if not shutil.which("node") or not (node_modules / "nodemailer").is_dir():
        print("nodemailer is not installed: it takes no part.\n")
        yield found
        return
    peer = Nodemailer(node_modules)
    found[NODE] = peer.run
    found[NODE_TUNED] = functools.partial(
        peer.run, maxConnections=CONNECTIONS, maxMessages=1_000_000
    )
    try:
        yield found
    finally:
        peer.close()
