"""Lettermint's webhook events about sent mail, as Anymail's tracking events."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from anymail.signals import AnymailTrackingEvent, EventType, RejectReason

INBOUND = "message.inbound"
TEST = "webhook.test"

#: Lettermint's event -> Anymail's event type and reject reason. Others are UNKNOWN.
TRACKING_EVENTS: Mapping[str, tuple[str, str | None]] = {
    "message.created": (EventType.QUEUED, None),
    "message.scheduled": (EventType.QUEUED, None),
    "message.rescheduled": (EventType.QUEUED, None),
    "message.released": (EventType.QUEUED, None),
    "message.canceled": (EventType.UNKNOWN, None),
    "message.sent": (EventType.SENT, None),
    "message.delivered": (EventType.DELIVERED, None),
    "message.auto_replied": (EventType.AUTORESPONDED, None),
    "message.soft_bounced": (EventType.DEFERRED, None),
    "message.hard_bounced": (EventType.BOUNCED, RejectReason.BOUNCED),
    "message.suppressed": (EventType.REJECTED, RejectReason.BLOCKED),
    "message.policy_rejected": (EventType.REJECTED, RejectReason.BLOCKED),
    "message.failed": (EventType.FAILED, None),
    "message.spam_complaint": (EventType.COMPLAINED, RejectReason.SPAM),
    "message.unsubscribed": (EventType.UNSUBSCRIBED, None),
    "message.opened": (EventType.OPENED, None),
    "message.clicked": (EventType.CLICKED, None),
    "suppression.added": (EventType.UNKNOWN, None),
    "suppression.removed": (EventType.UNKNOWN, None),
}

#: The name under which `tags` has the tag of X-LM-Tag.
SINGLE_TAG = "__lettermint_tag"

#: The `reason` of a suppression -> why the recipient was suppressed.
SUPPRESSION_REASONS: Mapping[str | None, str] = {
    "hard_bounce": RejectReason.BOUNCED,
    "spam_complaint": RejectReason.SPAM,
    "unsubscribe": RejectReason.UNSUBSCRIBED,
}

# The id becomes part of a cache key: memcached allows 250 bytes, and no blanks.
_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """The envelope that all of Lettermint's events share."""

    id: str
    type: str
    timestamp: datetime
    data: Mapping[str, Any]
    #: The whole payload, for `esp_event`.
    payload: Mapping[str, Any]


def read_event(payload: Mapping[str, Any]) -> WebhookEvent:
    """Return the event in a payload; raise ValueError with the name of a wrong field."""
    event_id, event_type = payload.get("id"), payload.get("event")
    if not isinstance(event_id, str) or not _ID.fullmatch(event_id):
        raise ValueError("id_invalid")
    if not isinstance(event_type, str) or not event_type:
        raise ValueError("event_invalid")
    # PHP, which writes these payloads, renders an empty object as a list.
    data = {} if payload.get("data") == [] else payload.get("data")
    if not isinstance(data, dict):
        raise ValueError("data_invalid")
    stamp = payload.get("timestamp")
    # `created_at` is the older name.
    timestamp = moment(payload.get("created_at") if stamp is None else stamp)
    return WebhookEvent(
        id=event_id, type=event_type, timestamp=timestamp, data=data, payload=payload
    )


def tracking_event(
    event: WebhookEvent, *, correlation_key: str | None
) -> AnymailTrackingEvent:
    """Return Anymail's event for an event about sent mail."""
    data = event.data
    event_type, reject_reason = TRACKING_EVENTS.get(
        event.type, (EventType.UNKNOWN, None)
    )
    if event.type == "message.suppressed":
        reject_reason = SUPPRESSION_REASONS.get(text(data.get("reason")), reject_reason)
    metadata = dict(mapping(data.get("metadata")))
    our_id = metadata.pop(correlation_key, None) if correlation_key else None
    return AnymailTrackingEvent(
        event_type=event_type,
        timestamp=event.timestamp,
        event_id=event.id,
        esp_event=event.payload,
        message_id=text(our_id) or text(data.get("message_id")),
        recipient=text(data.get("recipient")),
        reject_reason=reject_reason,
        description=text(data.get("reason")) or text(data.get("reason_code")),
        mta_response=text(mapping(data.get("response")).get("content")),
        tags=_tags(data),
        metadata=metadata,
        click_url=text(data.get("destination_url")),
        user_agent=text(data.get("user_agent")),
    )


def text(value: object) -> str | None:
    """Return a non-empty string, else None: any field may be missing or null."""
    return value if isinstance(value, str) and value else None


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object, else an empty one, which PHP renders as a list."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """Return a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def moment(value: object) -> datetime:
    """Return an ISO 8601 time in UTC; without an offset, it is taken for UTC."""
    try:
        stamp = datetime.fromisoformat(value if isinstance(value, str) else "")
        aware = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
        return aware.astimezone(UTC)
    except (ValueError, OverflowError):  # OverflowError: year 1 or 9999 with an offset
        raise ValueError("timestamp_invalid") from None


def _tags(data: Mapping[str, Any]) -> list[str]:
    # `tag` is the older field, for the single tag that a mail has over SMTP.
    tags = [data.get("tag"), *map(_tag, items(data.get("tags")))]
    return list(dict.fromkeys(tag for tag in map(text, tags) if tag))


def _tag(tag: object) -> object:
    """Return an entry of `tags` as a string: "campaign=spring" for a named tag."""
    if not isinstance(tag, dict):
        return tag  # a string, in older payloads
    name, value = text(tag.get("name")), text(tag.get("value"))
    if name == SINGLE_TAG or not (name and value):
        return value
    return f"{name}={value}"
