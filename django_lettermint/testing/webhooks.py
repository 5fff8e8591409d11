"""Webhooks as Lettermint documents them: the events of a message, signed and posted."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .records import ReceivedMessage

TEST_DOMAIN = "testing.lettermint.co"
_Outcome: TypeAlias = tuple[str, tuple[int, str, str] | None]

_DELIVERED: _Outcome = ("message.delivered", (250, "2.0.0", "OK"))
_HARD_BOUNCE: _Outcome = ("message.hard_bounced", (550, "5.1.1", "No such user"))
#: What the test addresses stand for, by their local part before a plus; others deliver.
_OUTCOMES: dict[str, list[_Outcome]] = {
    "softbounce": [("message.soft_bounced", (452, "4.2.2", "Mailbox full"))],
    "hardbounce": [_HARD_BOUNCE],
    "spamcomplaint": [_DELIVERED, ("message.spam_complaint", None)],
    "dsn": [_HARD_BOUNCE],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """One event; posting it again repeats its id, as Lettermint's retries do."""

    id: str
    event: str
    #: ISO 8601, UTC, with milliseconds.
    timestamp: str
    data: Mapping[str, object]

    @property
    def body(self) -> bytes:
        """The octets to post and to sign."""
        envelope = {
            "id": self.id,
            "event": self.event,
            "timestamp": self.timestamp,
            "data": self.data,
        }
        return json.dumps(
            envelope, ensure_ascii=False, separators=(",", ":"), default=dict
        ).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """One attempt to post an event, and what came of it."""

    url: str
    event: WebhookEvent
    attempt: int
    #: The HTTP status; None when no answer came.
    status: int | None
    #: Why no answer came.
    error: str = field(default="")


def events_for(message: ReceivedMessage) -> Iterator[WebhookEvent]:
    """Yield the events of a message, recipient by recipient."""
    for recipient in message.recipients:
        for event, response in _outcomes(recipient):
            yield _event(message, recipient, event, response)


def _outcomes(recipient: str) -> list[_Outcome]:
    local, _, domain = recipient.casefold().rpartition("@")
    if domain != TEST_DOMAIN:
        return [_DELIVERED]
    return _OUTCOMES.get(local.partition("+")[0], [_DELIVERED])


def _event(
    message: ReceivedMessage,
    recipient: str,
    event: str,
    response: tuple[int, str, str] | None,
) -> WebhookEvent:
    data: dict[str, object] = {
        "message_id": message.id,
        "subject": message.headers.get("Subject", ""),
        # Lettermint's PHP writes an empty mapping as a list.
        "metadata": message.metadata or [],
        "tag": message.tag,
        "tags": [message.tag] if message.tag else [],
        "recipient": recipient,
    }
    if response is not None:
        keys = ("status_code", "enhanced_status_code", "content")
        data["response"] = dict(zip(keys, response, strict=True))
    moment = datetime.datetime.fromtimestamp(message.received_at, datetime.UTC)
    return WebhookEvent(
        id=str(uuid.uuid5(uuid.UUID(message.id), f"{event} {recipient}")),
        event=event,
        timestamp=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        data=data,
    )


def sign(body: bytes, secret: str, timestamp: int) -> str:
    """Return the value of X-Lettermint-Signature; `timestamp` is in Unix seconds."""
    # The key is the whole secret, "whsec_" included, and not decoded.
    signed = f"{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: urllib would turn the POST into a GET."""

    def redirect_request(self, *args: object) -> None:
        """Follow nowhere."""


#: Without the proxies of the environment: the receiver is on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def post_event(
    url: str,
    event: WebhookEvent,
    secret: str,
    *,
    attempt: int = 1,
    timestamp: int | None = None,
    wrong_signature: bool = False,
    timeout: float = 5.0,
) -> WebhookDelivery:
    """Post an event once; failures are told in the result, never raised.

    `timestamp` is the time of signing in Unix seconds, by default now.
    """
    check_url(url)
    moment = int(time.time()) if timestamp is None else timestamp
    key = f"wrong {secret}" if wrong_signature else secret
    headers = {
        "Content-Type": "application/json",
        "X-Lettermint-Signature": sign(event.body, key, moment),
        "X-Lettermint-Event": event.event,
        "X-Lettermint-Delivery": str(moment),
        "X-Lettermint-Attempt": str(attempt),
    }
    request = urllib.request.Request(url, event.body, headers)  # noqa: S310
    status, error = _status(request, timeout)
    return WebhookDelivery(
        url=url, event=event, attempt=attempt, status=status, error=error
    )


def check_url(url: str) -> None:
    """Refuse with ValueError what nothing can be posted to."""
    try:
        parts = urllib.parse.urlsplit(url)
        of_the_web = parts.scheme in ("http", "https") and url.isascii()
        complete = of_the_web and bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete:
        raise ValueError(f"{url!r} is not an http:// or https:// address.")


def _status(request: urllib.request.Request, timeout: float) -> tuple[int | None, str]:
    try:
        with _OPENER.open(request, timeout=timeout) as answer:
            return int(answer.status), ""
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, ""
    except (OSError, http.client.HTTPException) as error:
        return None, str(error) or type(error).__name__
