"""The relay's webhooks, received by a plain web server and checked by the official SDK."""

from __future__ import annotations

import http.server
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from lettermint import Webhook, WebhookVerificationError

from django_lettermint.testing import (
    Relay,
    WebhookDelivery,
    events_for,
    post_event,
    sign,
)
from tests.relay_client import MESSAGE, client, send

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "whsec_test"


@dataclass
class Receiver:
    """A web server that keeps what is posted to it."""

    url: str = ""
    status: int = 200
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)

    def envelopes(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.may_answer.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append((dict(self.headers), body))
            receiver.may_answer.wait(10)
            self.send_response(receiver.status)
            self.send_header("Location", receiver.url)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield receiver
        receiver.may_answer.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as running:
        yield running


def test_a_delivery_is_posted_signed_and_with_the_documented_headers(
    relay: Relay, receiver: Receiver
) -> None:
    tagged = b"X-LM-Tag: welcome\r\nX-LM-Metadata-UserID: \xc3\xa9/1\r\n"
    send(relay, tagged + MESSAGE)
    (delivery,) = relay.webhooks.post(receiver.url, SECRET)
    assert (delivery.status, delivery.attempt, delivery.error) == (200, 1, "")
    ((headers, body),) = receiver.requests
    assert b'"\xc3\xa9/1"' in body
    assert headers["X-Lettermint-Event"] == "message.delivered"
    assert headers["X-Lettermint-Attempt"] == "1"
    assert headers["X-Lettermint-Delivery"] == (
        headers["X-Lettermint-Signature"].partition(",")[0].removeprefix("t=")
    )
    envelope = Webhook(SECRET).verify(body, headers)
    assert envelope["id"] == delivery.event.id
    assert envelope["timestamp"].endswith("Z")
    assert envelope["data"] == {
        "message_id": relay.messages[0].id,
        "subject": "Hi",
        "metadata": {"UserID": "é/1"},
        "tag": "welcome",
        "tags": ["welcome"],
        "recipient": "user@example.com",
        "response": {
            "status_code": 250,
            "enhanced_status_code": "2.0.0",
            "content": "OK",
        },
    }


@pytest.mark.parametrize(
    ("local", "events"),
    [
        ("ok", ["message.delivered"]),
        ("ok+anything", ["message.delivered"]),
        ("SoftBounce", ["message.soft_bounced"]),
        ("hardbounce+x", ["message.hard_bounced"]),
        ("spamcomplaint", ["message.delivered", "message.spam_complaint"]),
        ("dsn", ["message.hard_bounced"]),
    ],
)
def test_a_test_address_stands_for_its_events(
    relay: Relay, local: str, events: list[str]
) -> None:
    send(relay, to=f"{local}@testing.lettermint.co")
    assert [event.event for event in events_for(relay.messages[0])] == events


def test_each_recipient_has_its_own_event(relay: Relay) -> None:
    recipients = ["a@example.com", "hardbounce@testing.lettermint.co"]
    with client(relay) as connection:
        connection.sendmail("s@example.com", recipients, MESSAGE)
    first, second = events_for(relay.messages[0])
    assert [first.data["recipient"], second.data["recipient"]] == recipients
    assert first.id != second.id
    assert first.data["metadata"] == []


def test_attempts_repeat_the_event_and_its_id(relay: Relay, receiver: Receiver) -> None:
    send(relay)
    relay.webhooks.post(receiver.url, SECRET, attempts=3)
    relay.webhooks.post(receiver.url, SECRET, messages=relay.messages)
    assert len({body for _, body in receiver.requests}) == 1
    attempts = [headers["X-Lettermint-Attempt"] for headers, _ in receiver.requests]
    assert attempts == ["1", "2", "3", "1"]


def test_a_wrong_signature_does_not_verify(relay: Relay, receiver: Receiver) -> None:
    send(relay)
    relay.webhooks.post(receiver.url, SECRET, wrong_signature=True)
    ((headers, body),) = receiver.requests
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)


def test_an_event_can_be_signed_at_another_time(
    relay: Relay, receiver: Receiver
) -> None:
    send(relay)
    (event,) = events_for(relay.messages[0])
    post_event(receiver.url, event, SECRET, timestamp=int(time.time()) - 301)
    ((headers, body),) = receiver.requests
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)


def test_the_signature_is_that_of_the_documents() -> None:
    assert sign(b"{}", "whsec_test", 1700000000) == (
        "t=1700000000,v1="
        "35495024f4ef3f94e5a93e22221544c4b75e9a42300cd965ab81cb85cd994e91"
    )


@pytest.mark.parametrize("status", [302, 400, 503])
def test_what_the_receiver_answers_is_recorded(
    relay: Relay, receiver: Receiver, status: int
) -> None:
    receiver.status = status
    send(relay)
    (delivery,) = relay.webhooks.post(receiver.url, SECRET)
    assert delivery.status == status
    assert len(receiver.requests) == 1


def test_a_receiver_that_does_not_answer_is_recorded(relay: Relay) -> None:
    with receiving() as gone:
        pass
    send(relay)
    (delivery,) = relay.webhooks.post(gone.url, SECRET)
    assert delivery.status is None
    assert "refused" in delivery.error


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "127.0.0.1/hook",
        "http://",
        "http://[::1/hook",
        "http://localhost:65536/hook",
        "http://localhost/hook/é",
    ],
)
@pytest.mark.parametrize("method", ["post", "subscribe"])
def test_an_address_that_is_not_of_the_web_is_a_mistake(
    method: str, url: str, relay: Relay
) -> None:
    send(relay)
    with pytest.raises(ValueError, match="is not an http:// or https:// address"):
        getattr(relay.webhooks, method)(url, SECRET)


def test_a_subscription_posts_each_message_by_itself(
    relay: Relay, receiver: Receiver
) -> None:
    relay.webhooks.subscribe(receiver.url, SECRET, attempts=2)
    send(relay)
    send(relay, to="dsn@testing.lettermint.co")
    deliveries = relay.webhooks.wait_for(4)
    assert deliveries == relay.webhooks.deliveries
    assert [delivery.attempt for delivery in deliveries] == [1, 2, 1, 2]
    events = [envelope["event"] for envelope in receiver.envelopes()]
    assert events == ["message.delivered"] * 2 + ["message.hard_bounced"] * 2
    with pytest.raises(TimeoutError, match=r"4 of 5 webhooks after 0\.01 s"):
        relay.webhooks.wait_for(5, timeout=0.01)


def test_a_slow_receiver_does_not_hold_up_the_mail(
    relay: Relay, receiver: Receiver
) -> None:
    receiver.may_answer.clear()
    relay.webhooks.subscribe(receiver.url, SECRET)
    send(relay)
    send(relay)
    assert relay.webhooks.deliveries == []
    receiver.may_answer.set()
    assert len(relay.webhooks.wait_for(2)) == 2


def test_subscriptions_end_with_the_relay(receiver: Receiver) -> None:
    before = threading.active_count()
    relay = Relay()
    with relay:
        relay.webhooks.subscribe(receiver.url, SECRET)
    with relay:
        send(relay)
    assert relay.webhooks.deliveries == []
    assert threading.active_count() == before


def test_a_delivery_shows_neither_secret_nor_token(
    relay: Relay, receiver: Receiver
) -> None:
    send(relay)
    (delivery,) = relay.webhooks.post(receiver.url, SECRET)
    assert isinstance(delivery, WebhookDelivery)
    assert SECRET not in repr(delivery)
    assert relay.token not in repr(delivery)
