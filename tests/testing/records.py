"""Records as the relay makes them, without a relay."""

from __future__ import annotations

import uuid

from django_lettermint.testing.records import ReceivedMessage


def received(content: bytes = b"x") -> ReceivedMessage:
    return ReceivedMessage(
        id=str(uuid.uuid4()),
        mail_from="shop@example.com",
        recipients=("ada@example.com",),
        content=content,
        route=None,
        tag=None,
        metadata={},
        idempotency_key=None,
        smtputf8=False,
        body_8bit=False,
        chunked=False,
        connection=1,
        security="tls",
        tls="",
        token="",
        received_at=0.0,
    )
