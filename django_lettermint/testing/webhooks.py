"""Webhooks as Lettermint documents them: events of messages, signed and posted."""

from __future__ import annotations

import datetime
import email.utils
import hashlib
import hmac
import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from .records import ReceivedMessage, Refusal

if TYPE_CHECKING:
    from .relay import Relay

_TEST_DOMAIN = "testing.lettermint.co"
#: What the test addresses stand for, by their local part before a plus; others deliver.
_OUTCOMES = {
    "softbounce": ["message.soft_bounced"],
    "hardbounce": ["message.hard_bounced"],
    "spamcomplaint": ["message.delivered", "message.spam_complaint"],
    "dsn": ["message.hard_bounced"],
}
#: Of a browser that opens or clicks.
_CLIENT: dict[str, object] = {
    "device_type": "desktop",
    "client_type": "browser",
    "client_name": "Firefox",
    "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0",
    "bot": {"detected": False, "classification": "human", "machine": False},
}
_OF_THE_MESSAGE = frozenset({"message.created", "message.policy_rejected"})
_CONTEXT = {
    "scope": "project",
    "team_id": "5b8f1a52-0000-4000-8000-000000000001",
    "project_id": "5b8f1a52-0000-4000-8000-000000000002",
    "route_id": "5b8f1a52-0000-4000-8000-000000000003",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """One event; posting it again repeats its id, as Lettermint's retries do."""

    id: str
    event: str
    #: ISO 8601, UTC, with milliseconds.
    timestamp: str
    data: Mapping[str, object]
    #: Where the webhook belongs: scope, team, project and route.
    context: Mapping[str, object] = field(default_factory=_CONTEXT.copy)

    @property
    def body(self) -> bytes:
        """The octets to post and to sign."""
        envelope = {
            "id": self.id,
            "event": self.event,
            "timestamp": self.timestamp,
            "data": self.data,
            "context": self.context,
        }
        return json.dumps(
            envelope, ensure_ascii=False, separators=(",", ":"), default=dict
        ).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """An attempt to post an event, and its answer."""

    url: str
    event: WebhookEvent
    attempt: int
    #: The HTTP status; None when no answer came.
    status: int | None
    #: Why no answer came.
    error: str = field(default="")


def events_for(message: ReceivedMessage) -> Iterator[WebhookEvent]:
    """Yield the events of a message: `message.created`, then those of each recipient.

    A recipient has `message.sent` and `message.delivered`, or what Lettermint documents
    for its test address. The ids are the same at each call.
    """
    yield _lasting(message, "message.created")
    for recipient in message.recipients:
        local, _, domain = recipient.casefold().rpartition("@")
        name = local.partition("+")[0] if domain == _TEST_DOMAIN else ""
        for event in ("message.sent", *_OUTCOMES.get(name, ["message.delivered"])):
            yield _lasting(message, event, recipient)


def _lasting(message: ReceivedMessage, event: str, recipient: str = "") -> WebhookEvent:
    return replace(
        make_event(message, event, recipient),
        id=str(uuid.uuid5(uuid.UUID(message.id), f"{event} {recipient}")),
        timestamp=_iso(message.received_at),
    )


def make_event(
    message: ReceivedMessage, event: str, recipient: str = "", **data: object
) -> WebhookEvent:
    """Return a new event about a message, as in `make_event(mail, "message.opened", to)`.

    `recipient` is the first one by default. The keywords replace fields of its `data`.
    """
    now = _iso(time.time())
    fields: dict[str, object] = {
        "message_id": message.id,
        "subject": str(message.headers.get("Subject", "")),
        # Lettermint's PHP writes an empty mapping as a list.
        "metadata": message.metadata or [],
        "tag": message.tag,
        "tags": [{"name": "__lettermint_tag", "value": message.tag}]
        if message.tag
        else [],
    }
    if event == "message.created":
        fields |= _addresses(message)
    if event not in _OF_THE_MESSAGE:
        fields["recipient"] = recipient or message.recipients[0]
    return WebhookEvent(
        id=str(uuid.uuid4()),
        event=event,
        timestamp=now,
        data=fields | _details(event, now) | data,
    )


def _details(event: str, now: str) -> dict[str, object]:
    """Return the fields that only this event has."""
    details: dict[str, dict[str, object]] = {
        "message.delivered": {"response": _response(250, "2.0.0", "OK")},
        "message.soft_bounced": {"response": _response(452, "4.2.2", "Mailbox full")},
        "message.hard_bounced": {"response": _response(550, "5.1.1", "No such user")},
        "message.failed": {
            "reason": "Internal processing error",
            "response": _response(554, "5.3.0", "Cannot relay"),
        },
        "message.suppressed": {"reason": "hard_bounce"},
        "message.policy_rejected": {
            "reason": "spam content",
            "score": 15.2,
            "spam_symbols": [],
        },
        "message.unsubscribed": {"unsubscribed_at": now},
        "message.opened": {"opened_at": now, "first_open": True, **_CLIENT},
        "message.clicked": {
            "clicked_at": now,
            "destination_url": "https://example.com/",
            "link_index": 0,
            "anchor_text": "Example",
            "first_click": True,
            **_CLIENT,
        },
    }
    return details.get(event, {})


def _response(code: int, enhanced_code: str, text: str) -> dict[str, object]:
    return {
        "status_code": code,
        "enhanced_status_code": enhanced_code,
        "content": text,
    }


def _addresses(message: ReceivedMessage) -> dict[str, object]:
    def read(name: str) -> list[tuple[str, str]]:
        values = [str(value) for value in message.headers.get_all(name, [])]
        return [pair for pair in email.utils.getaddresses(values) if pair[1]]

    to, cc = ([address for _, address in read(name)] for name in ("To", "Cc"))
    name, sender = (read("From") or [("", message.mail_from)])[0]
    return {
        "from": {"email": sender, "name": name or None},
        "to": to,
        "cc": cc,
        "bcc": [each for each in message.recipients if each not in {*to, *cc}],
        "reply_to": next((address for _, address in read("Reply-To")), None),
    }


def _iso(moment: float) -> str:
    stamp = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sign(body: bytes, secret: str, timestamp: int) -> str:
    """Return the value of X-Lettermint-Signature; `timestamp` is in Unix seconds."""
    # The key is the whole secret, "whsec_" included, and not decoded.
    signed = f"{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: urllib would turn the POST into a GET."""

    def redirect_request(self, *args: object) -> None:
        """Do not follow it."""


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
    """Post an event once; a failure is in the result, not raised.

    `timestamp` is the time of signing in Unix seconds, by default now. Raises ValueError
    for a URL that is not http:// or https://.
    """
    check_url(url)
    moment = int(time.time()) if timestamp is None else timestamp
    body = event.body
    headers = {
        "Content-Type": "application/json",
        "X-Lettermint-Signature": sign(
            body, f"wrong {secret}" if wrong_signature else secret, moment
        ),
        "X-Lettermint-Event": event.event,
        "X-Lettermint-Delivery": str(moment),
        "X-Lettermint-Attempt": str(attempt),
    }
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - checked above
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
    except urllib.error.URLError as error:
        return None, str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return None, str(error) or type(error).__name__


#: What ends a subscription's thread.
_END = object()
_Listener: TypeAlias = Callable[[ReceivedMessage | Refusal], None]


class Webhooks:
    """The webhooks of one relay, and a record of what was posted."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._changed = threading.Condition()
        self._deliveries: list[WebhookDelivery] = []
        self._stopping = threading.Event()
        self._subscriptions: list[
            tuple[_Listener, queue.SimpleQueue[object], threading.Thread]
        ] = []

    @property
    def deliveries(self) -> list[WebhookDelivery]:
        """All attempts so far, in the order in which they were answered."""
        with self._changed:
            return list(self._deliveries)

    def post(
        self,
        url: str,
        secret: str,
        *,
        messages: Iterable[ReceivedMessage] | None = None,
        events: Iterable[WebhookEvent] | None = None,
        attempts: int = 1,
        wrong_signature: bool = False,
        timeout: float = 5.0,
    ) -> list[WebhookDelivery]:
        """Post `events`, by default those of `messages`, by default of all that are kept.

        Each event is posted `attempts` times with the same id, whatever the answer.
        """
        if events is None:
            kept = self._relay.messages if messages is None else messages
            events = (event for message in kept for event in events_for(message))
        done = []
        for event in events:
            for attempt in range(1, attempts + 1):
                delivery = post_event(
                    url,
                    event,
                    secret,
                    attempt=attempt,
                    wrong_signature=wrong_signature,
                    timeout=timeout,
                )
                with self._changed:
                    self._deliveries.append(delivery)
                    self._changed.notify_all()
                done.append(delivery)
        return done

    def subscribe(
        self,
        url: str,
        secret: str,
        *,
        attempts: int = 1,
        timeout: float = 5.0,
        on_delivery: Callable[[WebhookDelivery], None] = lambda delivery: None,
    ) -> None:
        """Post the events of each message from now on, until the relay stops.

        `on_delivery` is called with each attempt, in the subscription's thread.
        """
        check_url(url)
        waiting: queue.SimpleQueue[object] = queue.SimpleQueue()

        def work() -> None:
            while (record := waiting.get()) is not _END and not self._stopping.is_set():
                if not isinstance(record, ReceivedMessage):
                    continue
                for event in events_for(record):
                    for delivery in self.post(
                        url, secret, events=[event], attempts=attempts, timeout=timeout
                    ):
                        on_delivery(delivery)

        thread = threading.Thread(target=work, name="lettermint-webhooks", daemon=True)
        thread.start()
        listener: _Listener = waiting.put
        self._relay.add_listener(listener)
        self._subscriptions.append((listener, waiting, thread))

    def wait_for(self, count: int, timeout: float = 5.0) -> list[WebhookDelivery]:
        """Return the deliveries as soon as there are `count`; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self._deliveries) >= count, timeout
            ):
                raise TimeoutError(
                    f"{len(self._deliveries)} of {count} webhooks after {timeout} s"
                )
            return list(self._deliveries)

    def stop(self, timeout: float) -> None:
        """End all subscriptions; what waits to be posted is dropped."""
        self._stopping.set()
        for listener, waiting, _ in self._subscriptions:
            self._relay.remove_listener(listener)
            waiting.put(_END)
        while self._subscriptions:
            self._subscriptions.pop()[2].join(timeout)
        self._stopping.clear()
