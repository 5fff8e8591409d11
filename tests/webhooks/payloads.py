"""Payloads of the events that Lettermint sends, in the documented shape.

Fields that nothing reads are left out.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

#: Lettermint's id of a message, and ours, which travels in its metadata.
LETTERMINT_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
OUR_ID = "0a3f1d6c2b7e4f5c8d9e0f1a2b3c4d5e"

RECIPIENT = "user@example.com"

#: Everything that JSON can hold.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)

#: `data` of an event about a recipient's mail.
TO: dict[str, Any] = {
    "message_id": LETTERMINT_ID,
    "subject": "Welcome to Acme",
    "metadata": {"django_message_id": OUR_ID, "user": "123"},
    "tag": "welcome",
    "tags": [
        {"name": "__lettermint_tag", "value": "welcome"},
        {"name": "campaign", "value": "spring"},
    ],
    "recipient": RECIPIENT,
}


def reply(code: int, enhanced: str, content: str) -> dict[str, Any]:
    return {
        "response": {
            "status_code": code,
            "enhanced_status_code": enhanced,
            "content": content,
        }
    }


#: Event type -> `data`, where it differs.
DATA: dict[str, dict[str, Any]] = {
    "message.hard_bounced": TO | reply(550, "5.1.1", "User unknown"),
    "message.failed": TO
    | {"reason": "Internal processing error"}
    | reply(554, "5.3.0", "Cannot relay"),
    "message.clicked": TO
    | {
        "user_agent": "Mozilla/5.0",
        "destination_url": "https://acme.example/start?a=1",
    },
    "message.inbound": {
        "message_id": "11111111-2222-4333-8444-555555555555",
        "envelope": {"mail_from": "bounces@sender.example", "rcpt_to": [RECIPIENT]},
        "from": {"email": "kim@sender.example", "name": 'Kim "K" Lee'},
        "to": [
            {"email": "support+42@acme.example", "name": "", "subaddress": "42"},
            {"email": "sales@acme.example", "name": "Sales", "subaddress": None},
        ],
        "cc": [{"email": "boss@acme.example", "name": None, "subaddress": None}],
        "recipient": "support+42@acme.example",
        "reply_to": "kim@private.example",
        "subject": "Grüße",
        "date": "2026-02-08T20:14:00.000Z",
        "body": {"text": "Hallo, da\n", "html": "<p>Hallo, da</p>"},
        "headers": [
            {"name": "Message-ID", "value": "<abc@sender.example>"},
            {"name": "Subject", "value": "Grüße"},
            {"name": "Received", "value": "from a by b"},
            {"name": "Received", "value": "from c by d"},
            {"name": "Content-Type", "value": "text/html"},
        ],
        "attachments": [
            {
                "filename": "note.txt",
                "content": "aGVsbG8=",
                "content_type": "text/plain; charset=utf-8",
                "content_id": None,
            },
            {
                "filename": "logo.png",
                "content": "iVBORw==",
                "content_type": "image/png",
                "content_id": "logo@acme.example",
            },
        ],
        "is_spam": False,
        "spam_score": 1.5,
    },
    "webhook.test": {"message": "This is a test webhook from Lettermint"},
}


def payload(event_type: str, /, **changes: Any) -> dict[str, Any]:
    """Return a payload in its envelope; keywords replace fields of `data`."""
    return {
        "id": "54d7e8c9-1195-4ba0-9d3f-b9af92305add",
        "event": event_type,
        "timestamp": "2026-02-08T20:14:00.123Z",
        "data": DATA.get(event_type, TO) | changes,
        "context": {"scope": "project", "team_id": 1, "project_id": 2, "route_id": 3},
    }


def encode(content: object) -> bytes:
    """Return JSON as PHP writes it for Lettermint: unescaped, without blanks."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
