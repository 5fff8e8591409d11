"""Mails that name the process and the sockets that sent them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from pathlib import Path

from django.core.mail import EmailMessage

from django_lettermint.backend import EmailBackend


def report(to: str) -> None:
    """Send a mail that names this process and its sockets to the relay."""
    options = json.loads(os.environ["OPTIONS"])
    sender = EmailBackend(**options)
    sender.open()
    body = json.dumps({"pid": os.getpid(), "ports": ports_to(options["port"])})
    message = EmailMessage("Hello", body, "ann@example.org", [to], connection=sender)
    assert message.send() == 1


def ports_to(relay: int) -> list[int]:
    """Return the local ports of all sockets of this process that go to the relay."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            copy = os.dup(int(entry.name))
        except OSError:
            continue  # the directory's own descriptor, closed by now
        if stat.S_ISSOCK(os.fstat(copy).st_mode):
            with socket.socket(fileno=copy) as sock, contextlib.suppress(OSError):
                if sock.getpeername()[1] == relay:
                    found.append(sock.getsockname()[1])
        else:
            os.close(copy)
    return found
