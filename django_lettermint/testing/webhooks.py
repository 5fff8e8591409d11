"""Webhooks as Lettermint documents them: events of messages, signed and posted."""

from __future__ import annotations

import datetime
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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .records import ReceivedMessage
    from .state import RelayState

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


@dataclass(frozen=True, slots=True)
class _Subscription:
    put: Callable[[ReceivedMessage | None], None]
    thread: threading.Thread


class Webhooks:
    """The webhooks of one relay, and a record of what was posted."""

    def __init__(self, state: RelayState) -> None:
        self._state = state
        self._changed = threading.Condition()
        self._deliveries: list[WebhookDelivery] = []
        self._stopping = threading.Event()
        self._subscriptions: list[_Subscription] = []

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
        attempts: int = 1,
        wrong_signature: bool = False,
        timeout: float = 5.0,
    ) -> list[WebhookDelivery]:
        """Post the events of `messages`, by default of all that the relay keeps.

        Each event is posted `attempts` times with the same id, whatever the answer.
        """
        if messages is None:
            with self._state.changed:
                messages = tuple(self._state.messages)
        done = []
        for message in messages:
            for event in events_for(message):
                for attempt in range(1, attempts + 1):
                    delivery = post_event(
                        url,
                        event,
                        secret,
                        attempt=attempt,
                        wrong_signature=wrong_signature,
                        timeout=timeout,
                    )
                    self._record(delivery)
                    done.append(delivery)
        return done

    def subscribe(
        self, url: str, secret: str, *, attempts: int = 1, timeout: float = 5.0
    ) -> None:
        """Post the events of each message from now on, until the relay stops."""
        check_url(url)
        inbox: queue.SimpleQueue[ReceivedMessage | None] = queue.SimpleQueue()

        def work() -> None:
            while (message := inbox.get()) is not None and not self._stopping.is_set():
                self.post(
                    url, secret, messages=[message], attempts=attempts, timeout=timeout
                )

        thread = threading.Thread(target=work, name="lettermint-webhooks", daemon=True)
        thread.start()
        self._state.observers.append(inbox.put)
        self._subscriptions.append(_Subscription(inbox.put, thread))

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
        for subscription in self._subscriptions:
            self._state.observers.remove(subscription.put)
            subscription.put(None)
        while self._subscriptions:
            self._subscriptions.pop().thread.join(timeout)
        self._stopping.clear()

    def _record(self, delivery: WebhookDelivery) -> None:
        with self._changed:
            self._deliveries.append(delivery)
            self._changed.notify_all()
