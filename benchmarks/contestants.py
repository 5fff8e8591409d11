"""Who sends: Django, smtplib, nodemailer, this package, and ready bytes as the ceiling."""

from __future__ import annotations

import functools
import json
import os
import shutil
import smtplib
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
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.backends.smtp import EmailBackend as SMTPBackend

from django_lettermint.backend import EmailBackend

THREADS = 8
TOKEN = "lm_bench"
LINE = "Hello dear reader, this is a line of text for you.\n"
HTML = "<p>Hello dear reader, this is a line of text for you.</p>\n" * 1000
BIG = os.urandom(730_000)


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    rtt: int = 20
    mode: str = "single"
    size: str = "2 KB"
    recipients: int = 1
    #: Milliseconds that the relay takes over a message.
    think: int = 0
    security: str = "starttls"
    #: Messages of a batch, if not the usual number.
    limit: int = 0

    @property
    def count(self) -> int:
        """Return the messages of a batch."""
        return self.limit or {"2 KB": 100, "100 KB": 25, "1 MB": 10}[self.size]


@dataclass(frozen=True)
class Target:
    """Where to send to."""

    port: int
    ca_file: str
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
        cell = self.cell
        to = [f"user{number}.{each}@example.org" for each in range(cell.recipients)]
        body = LINE * (38 * 20 if cell.size == "100 KB" else 38)
        mail = EmailMultiAlternatives(
            f"Subject {number}", body, f"sender{number % 7}@example.com", to
        )
        if cell.size == "100 KB":
            mail.attach_alternative(HTML, "text/html")
        if cell.size == "1 MB":
            mail.attach("a.bin", BIG, "application/octet-stream")
        return mail


SendAll = Callable[[Sequence[EmailMessage]], object]


def drive(cell: Cell, senders: Sequence[SendAll], seconds: float) -> Sent:
    """Send in the cell's mode; in `threads`, each thread has a sender of its own."""
    make = Mails(cell)
    began, cpu = time.perf_counter(), time.process_time()
    if cell.mode == "batch":
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
    """Django's own, with one TLS context for good, which it has not got by itself."""

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
        host="localhost",
        port=target.port,
        username="lettermint",
        password=TOKEN,
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


def run_django_held(cell: Cell, target: Target, seconds: float) -> Sent:
    held = _held(_opened, cell, target)
    return drive(cell, [each.send_messages for each in held], seconds)


def _opened(target: Target) -> SMTPBackend:
    backend = _django(target)
    backend.open()
    return backend


def run_smtplib(cell: Cell, target: Target, seconds: float) -> Sent:
    """Send ready bytes, as most who write it by hand do: no rendering in its CPU."""
    ready = Mails(cell)().message().as_bytes()

    def sender(smtp: smtplib.SMTP) -> SendAll:
        def send(mails: Sequence[EmailMessage]) -> None:
            for mail in mails:
                smtp.sendmail(str(mail.from_email), mail.to, ready)

        return send

    return drive(cell, [sender(each) for each in _held(_login, cell, target)], seconds)


def _login(target: Target) -> smtplib.SMTP:
    context = _context(target.ca_file)
    if target.security == "tls":
        smtp: smtplib.SMTP = smtplib.SMTP_SSL(
            "localhost", target.port, "bench", context=context
        )
    else:
        smtp = smtplib.SMTP("localhost", target.port, "bench")
        smtp.starttls(context=context)
    smtp.login("lettermint", TOKEN)
    return smtp


def run_ceiling(cell: Cell, target: Target, seconds: float) -> Sent:
    """Write ready bytes with BDAT: a batch in one write, else a message in one."""
    ready = Mails(cell)().message().as_bytes().replace(b"\n", b"\r\n")
    recipients = b"".join(
        b"RCPT TO:<user%d@example.org>\r\n" % each for each in range(cell.recipients)
    )
    begin = b"MAIL FROM:<sender@example.com>\r\n" + recipients
    message = begin + b"BDAT %d LAST\r\n" % len(ready) + ready

    def sender(smtp: smtplib.SMTP) -> SendAll:
        def send(mails: Sequence[EmailMessage]) -> None:
            assert smtp.sock is not None
            # No more at once than a relay takes without being read from.
            for start in range(0, len(mails), 10):
                part = len(mails[start : start + 10])
                smtp.sock.sendall(message * part)
                for _ in range(part * (2 + cell.recipients)):
                    smtp.getreply()

        return send

    return drive(cell, [sender(each) for each in _held(_login, cell, target)], seconds)


_connections: dict[object, list[Any]] = {}


def _held(make: Callable[[Target], Any], cell: Cell, target: Target) -> list[Any]:
    """Return warm connections, one for each thread."""
    held = _connections.setdefault((make, target), [])
    while len(held) < (THREADS if cell.mode == "threads" else 1):
        held.append(make(target))
    return held


def close_held() -> None:
    """Close the connections of `_held()`."""
    for held in _connections.values():
        for each in held:
            each.close()
    _connections.clear()


def ours(**options: Any) -> Callable[[Cell, Target, float], Sent]:
    def run(cell: Cell, target: Target, seconds: float) -> Sent:
        backend = our_backend(target, **options)
        return drive(cell, [backend.send_messages] * THREADS, seconds)

    return run


def our_backend(target: Target, **options: Any) -> EmailBackend:
    return EmailBackend(
        api_token=TOKEN,
        host="localhost",
        port=target.port,
        security=target.security,
        ca_file=target.ca_file,
        pool={"max_size": THREADS, "max_messages": 0},
        idempotency=True,  # as at lettermint.co
        **options,
    )


class Nodemailer:
    """nodemailer's pool, in a process of its own."""

    def __init__(self, node_modules: Path) -> None:
        script = Path(__file__).with_name("nodemailer.js")
        self._node = subprocess.Popen(
            ["node", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "NODE_PATH": str(node_modules)},
            text=True,
        )

    def __call__(self, cell: Cell, target: Target, seconds: float) -> Sent:
        task = {
            "port": target.port,
            "ca": target.ca_file,
            # Five are its default.
            "connections": THREADS if cell.mode == "threads" else 5,
            "mode": cell.mode,
            "count": cell.count,
            "seconds": seconds,
            "size": cell.size,
            "recipients": cell.recipients,
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
def nodemailer(node_modules: Path) -> Iterator[Nodemailer | None]:
    """Run nodemailer if it is installed."""
    if not shutil.which("node") or not (node_modules / "nodemailer").is_dir():
        yield None
        return
    peer = Nodemailer(node_modules)
    try:
        yield peer
    finally:
        peer.close()


Contestant = Callable[[Cell, Target, float], Sent]

CONTESTANTS: dict[str, Contestant] = {
    "Django": run_django,
    "Django, held open": run_django_held,
    "smtplib, ready bytes": run_smtplib,
    "ours, PIPELINING": ours(),
    "ours, CHUNKING": ours(chunking=True),
    "ours, 4 connections": ours(batch_connections=4),
    "ours, CHUNKING, 4 connections": ours(chunking=True, batch_connections=4),
    "ceiling": run_ceiling,
}
#: They wait for each command, in a batch as well.
SLOW = {"Django", "Django, held open", "smtplib, ready bytes"}
#: These differ from others in batches only.
ONLY_BATCH = {"ours, 4 connections", "ours, CHUNKING, 4 connections"}
