"""Compare the outcomes of messages with the mail that a server has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django_lettermint.results import Outcome
from tests.sending import result

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from tests.zoo.server import Server

#: Copies that a recipient may have.
COPIES = {Outcome.SENT: {1}, Outcome.NOT_SENT: {0}, Outcome.UNKNOWN: {0, 1}}


def each_once(messages: Sequence[EmailMessage]) -> Counter[str]:
    """Return what `taken()` is if each message arrived once for each recipient."""
    return Counter(who for message in messages for who in message.to)


def outcomes(messages: Sequence[EmailMessage]) -> Counter[str]:
    """Count the messages by their outcome."""
    return Counter(result(message).outcome.name for message in messages)


def check(server: Server, messages: Sequence[EmailMessage]) -> None:
    """Compare the outcome of each message with what the server has of it."""
    taken = server.taken()
    for message in messages:
        [who] = message.to
        assert taken[who] in COPIES[result(message).outcome], (who, result(message))
