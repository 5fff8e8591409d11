"""An app that tells the test of each final signal, by a datagram."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig

from django_lettermint.signals import message_failed, message_sent

if TYPE_CHECKING:
    from django_lettermint.results import SendResult


class SignalsConfig(AppConfig):
    """Connects the receivers."""

    name = "tests.workers.signals"
    label = "worker_signals"

    def ready(self) -> None:
        """Connect them."""
        message_sent.connect(tell)
        message_failed.connect(tell)


def tell(*, message: Any, result: SendResult, **others: Any) -> None:
    """Send recipient and outcome as JSON."""
    ended = {
        "to": message.to,
        "outcome": result.outcome.value,
        "tag": getattr(message, "tag", None),
        "error": str(others.get("error", "")),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(json.dumps(ended).encode(), os.environ["QUEUE_SIGNALS"])
