"""A payload of each event that Lettermint sends, in the documented shape.

From its documentation of webhook events and the fields its own drivers read.
"""

from __future__ import annotations

import json
from typing import Any

#: Lettermint's id of a message, and ours, which travels in its metadata.
LETTERMINT_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
OUR_ID = "0a3f1d6c2b7e4f5c8d9e0f1a2b3c4d5e"

RECIPIENT = "user@example.com"

MESSAGE: dict[str, Any] = {
    "message_id": LETTERMINT_ID,
    "subject": "Welcome to Acme",
    "metadata": {"django_message_id": OUR_ID, "user": "123"},
    "tag": "welcome",
    "tags": [
        {"name": "__lettermint_tag", "value": "welcome"},
        {"name": "campaign", "value": "spring"},
    ],
}
CLIENT: dict[str, Any] = {
    "device_type": "desktop",
    "client_type": "webmail",
    "client_name": "Gmail",
    "user_agent": "Mozilla/5.0",
    "bot": {
        "detected": False,
        "probability": 0.02,
        "classification": "human",
        "proxy_type": None,
        "reason_codes": [],
        "machine": False,
        "counts_for_metrics": True,
    },
}
SPAM_SYMBOLS: list[dict[str, Any]] = [
    {"name": "BAD_WORDS", "score": 6.5, "options": ["casino"], "description": "Words"}
]


def response(code: int, enhanced: str, content: str) -> dict[str, Any]:
    return {
        "status_code": code,
        "enhanced_status_code": enhanced,
        "content": content,
    }


#: Event type -> `data`.
DATA: dict[str, dict[str, Any]] = {
    "message.created": MESSAGE
    | {
        "from": {"email": "updates@acme.example", "name": "Acme Updates"},
        "to": [RECIPIENT],
        "cc": ["cc@example.com"],
        "bcc": ["bcc@example.com"],
        "reply_to": "help@acme.example",
    },
    "message.scheduled": MESSAGE | {"scheduled_at": "2026-03-01T08:00:00.000Z"},
    "message.rescheduled": MESSAGE
    | {
        "previous_scheduled_at": "2026-03-01T08:00:00.000Z",
        "scheduled_at": "2026-03-02T08:00:00.000Z",
    },
    "message.released": MESSAGE
    | {
        "scheduled_at": "2026-03-02T08:00:00.000Z",
        "released_at": "2026-03-02T08:00:01.000Z",
        "release_delay_seconds": 1,
    },
    "message.canceled": MESSAGE | {"scheduled_at": "2026-03-02T08:00:00.000Z"},
    "message.sent": MESSAGE | {"recipient": RECIPIENT},
    "message.delivered": MESSAGE
    | {"recipient": RECIPIENT, "response": response(250, "2.0.0", "OK queued")},
    "message.auto_replied": MESSAGE
    | {
        "auto_reply": {
            "sender": RECIPIENT,
            "recipient": "updates@acme.example",
            "subject": "Out of office",
            "body": {"text": "Back on Monday", "html": None},
        }
    },
    "message.soft_bounced": MESSAGE
    | {"recipient": RECIPIENT, "response": response(452, "4.2.2", "Mailbox full")},
    "message.hard_bounced": MESSAGE
    | {"recipient": RECIPIENT, "response": response(550, "5.1.1", "User unknown")},
    "message.suppressed": MESSAGE | {"recipient": RECIPIENT, "reason": "hard_bounce"},
    "message.policy_rejected": MESSAGE
    | {"reason": "spam content", "score": 15.2, "spam_symbols": SPAM_SYMBOLS},
    "message.failed": MESSAGE
    | {
        "recipient": RECIPIENT,
        "reason": "Internal processing error",
        "response": response(554, "5.3.0", "Cannot relay"),
    },
    "message.spam_complaint": MESSAGE | {"recipient": RECIPIENT},
    "message.unsubscribed": MESSAGE
    | {"recipient": RECIPIENT, "unsubscribed_at": "2026-02-08T20:14:00.000Z"},
    "message.opened": MESSAGE
    | CLIENT
    | {
        "recipient": RECIPIENT,
        "opened_at": "2026-02-08T20:14:00.000Z",
        "first_open": True,
    },
    "message.clicked": MESSAGE
    | CLIENT
    | {
        "recipient": RECIPIENT,
        "clicked_at": "2026-02-08T20:14:00.000Z",
        "destination_url": "https://acme.example/start?a=1",
        "link_index": 0,
        "anchor_text": "Start",
        "first_click": True,
    },
    "message.inbound": {
        "route": "support",
        "message_id": "11111111-2222-4333-8444-555555555555",
        "envelope": {"mail_from": "bounces@sender.example", "rcpt_to": [RECIPIENT]},
        "from": {"email": "kim@sender.example", "name": 'Kim "K" Lee'},
        "to": [
            {"email": "support+42@acme.example", "name": "", "subaddress": "42"},
            {"email": "sales@acme.example", "name": "Sales", "subaddress": None},
        ],
        "cc": [{"email": "boss@acme.example", "name": None, "subaddress": None}],
        "recipient": "support+42@acme.example",
        "subaddress": "42",
        "reply_to": "kim@private.example",
        "subject": "Grüße",
        "date": "2026-02-08T20:14:00.000Z",
        "body": {"text": "Hallo, da\n", "html": "<p>Hallo, da</p>"},
        "tag": None,
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
                "size": 5,
                "content_id": None,
            },
            {
                "filename": "logo.png",
                "content": "iVBORw==",
                "content_type": "image/png",
                "size": 4,
                "content_id": "logo@acme.example",
            },
        ],
        "is_spam": False,
        "spam_score": 1.5,
        "spam_symbols": SPAM_SYMBOLS,
    },
    "suppression.added": {
        "suppression_id": "99999999-2222-4333-8444-555555555555",
        "type": "email",
        "value": RECIPIENT,
        "reason": "hard_bounce",
        "applies_to": "project",
    },
    "suppression.removed": {
        "suppression_id": "99999999-2222-4333-8444-555555555555",
        "type": "email",
        "value": RECIPIENT,
        "reason": "hard_bounce",
        "applies_to": "project",
    },
    "webhook.test": {
        "message": "This is a test webhook from Lettermint",
        "webhook_id": "88888888-2222-4333-8444-555555555555",
        "timestamp": 1770581640,
    },
}


def payload(event_type: str, /, **changes: Any) -> dict[str, Any]:
    """Return a payload in its envelope; keywords replace fields of `data`."""
    return {
        "id": "54d7e8c9-1195-4ba0-9d3f-b9af92305add",
        "event": event_type,
        "timestamp": "2026-02-08T20:14:00.123Z",
        "data": DATA.get(event_type, {}) | changes,
        "context": {"scope": "project", "team_id": 1, "project_id": 2, "route_id": 3},
    }


def encode(content: object) -> bytes:
    """Return JSON as PHP writes it for Lettermint: unescaped, without blanks."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
