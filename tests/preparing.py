"""Messages made ready for the network, without one."""

from __future__ import annotations

from email import message_from_bytes, policy
from typing import TYPE_CHECKING, Any

from django.test import override_settings

from django_lettermint.backend import EmailBackend
from django_lettermint.payload import Payload

if TYPE_CHECKING:
    from email.message import EmailMessage as Mime

    from django.core.mail import EmailMessage

    from django_lettermint.envelope import Envelope
    from django_lettermint.outgoing import OutgoingMessage


def prepared(message: EmailMessage, **options: Any) -> OutgoingMessage:
    """Prepare a message as the backend does."""
    # As settings, where None is a value.
    settings = {f"LETTERMINT_{name.upper()}": value for name, value in options.items()}
    with override_settings(LETTERMINT_API_TOKEN="lm_unused", **settings):
        backend = EmailBackend()
    return Payload(message, backend).prepare()


def envelopes(message: EmailMessage, **options: Any) -> list[Envelope]:
    """Prepare a message that makes several envelopes."""
    return [each.envelope for each in prepared(message, **options).submissions]


def envelope(message: EmailMessage, **options: Any) -> Envelope:
    """Prepare a message that all recipients get alike; return its first part."""
    first, *others = envelopes(message, **options)
    assert all(each.content == first.content for each in others)
    return first


def parsed(content: bytes) -> Mime:
    """Parse what would be sent."""
    return message_from_bytes(content, policy=policy.default)


def header_lines(content: bytes, name: str) -> list[bytes]:
    """Return the lines of the headers of a name, unfolded, as they were written."""
    head = content.partition(b"\r\n\r\n")[0]
    unfolded = head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b"\t")
    start = name.lower().encode() + b":"
    return [line for line in unfolded.split(b"\r\n") if line.lower().startswith(start)]
