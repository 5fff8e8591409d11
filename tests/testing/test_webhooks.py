"""The relay's webhooks, received by a plain web server and checked by the official SDK."""

from __future__ import annotations

import http.server
import json
import smtplib
import socket
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
    make_event,
    post_event,
    sign,
)
from tests.testing.relay_client import MESSAGE, client, send

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
    delivery = relay.webhooks.post(receiver.url, SECRET)[-1]
    assert (delivery.status, delivery.attempt, delivery.error) == (200, 1, "")
    headers, body = receiver.requests[-1]
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
        "tags": [{"name": "__lettermint_tag", "value": "welcome"}],
        "recipient": "user@example.com",
        "response": {
            "status_code": 250,
            "enhanced_status_code": "2.0.0",
            "content": "OK",
        },
    }
    assert json.loads(body)["context"].keys() == {
        "scope",
        "team_id",
        "project_id",
        "route_id",
    }


def test_a_message_without_a_tag_has_no_tags(relay: Relay) -> None:
    send(relay)
    for event in events_for(relay.messages[0]):
        assert event.data["tag"] is None
        assert event.data["tags"] == []


def test_the_creation_of_a_message_is_told_once_with_its_addresses(
    relay: Relay,
) -> None:
    head = (
        b"From: Acme <news@example.com>\r\nTo: a@example.com\r\n"
        b"Cc: b@example.com\r\nReply-To: Help <help@example.com>\r\n\r\n"
    )
    with client(relay) as connection:
        everyone = ["a@example.com", "b@example.com", "c@example.com"]
        connection.sendmail("bounces@example.com", everyone, head)
    created, *others = events_for(relay.messages[0])
    assert created.event == "message.created"
    assert created.data["from"] == {"email": "news@example.com", "name": "Acme"}
    assert created.data["to"] == ["a@example.com"]
    assert created.data["cc"] == ["b@example.com"]
    assert created.data["bcc"] == ["c@example.com"]
    assert created.data["reply_to"] == "help@example.com"
    assert "recipient" not in created.data
    assert [event.event for event in others] == [
        "message.sent",
        "message.delivered",
    ] * 3


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("message.soft_bounced", {"response"}),
        ("message.suppressed", {"reason"}),
        ("message.failed", {"reason", "response"}),
        ("message.unsubscribed", {"unsubscribed_at"}),
        ("message.opened", {"opened_at", "first_open", "user_agent", "bot"}),
        ("message.clicked", {"clicked_at", "destination_url", "user_agent"}),
    ],
)
def test_any_event_of_a_recipient_can_be_made(
    relay: Relay, name: str, fields: set[str]
) -> None:
    send(relay)
    (message,) = relay.messages
    event = make_event(message, name)
    assert event.event == name
    assert event.data["recipient"] == "user@example.com"
    assert fields <= event.data.keys()
    assert event.id != make_event(message, name).id


def test_an_event_says_what_it_is_told_to(relay: Relay) -> None:
    send(relay)
    event = make_event(
        relay.messages[0], "message.suppressed", "b@example.com", reason="manual"
    )
    assert (event.data["recipient"], event.data["reason"]) == (
        "b@example.com",
        "manual",
    )


def test_a_policy_rejection_is_of_the_message(relay: Relay) -> None:
    send(relay)
    event = make_event(relay.messages[0], "message.policy_rejected")
    assert "recipient" not in event.data
    assert event.data["spam_symbols"] == []


def test_chosen_events_can_be_posted(relay: Relay, receiver: Receiver) -> None:
    send(relay)
    opened = make_event(relay.messages[0], "message.opened")
    (delivery,) = relay.webhooks.post(receiver.url, SECRET, events=[opened])
    assert delivery.event is opened
    assert relay.webhooks.deliveries == [delivery]


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
    made = [event.event for event in events_for(relay.messages[0])]
    assert made == ["message.created", "message.sent", *events]


def test_each_recipient_has_its_own_event(relay: Relay) -> None:
    recipients = ["a@example.com", "hardbounce@testing.lettermint.co"]
    with client(relay) as connection:
        connection.sendmail("s@example.com", recipients, MESSAGE)
    _, *events = events_for(relay.messages[0])
    first, second = recipients
    told = [event.data["recipient"] for event in events]
    assert told == [first, first, second, second]
    assert len({event.id for event in events}) == 4
    assert events[0].data["metadata"] == []


def test_attempts_repeat_the_event_and_its_id(relay: Relay, receiver: Receiver) -> None:
    send(relay)
    relay.webhooks.post(receiver.url, SECRET, attempts=3)
    relay.webhooks.post(receiver.url, SECRET, messages=relay.messages)
    assert len({body for _, body in receiver.requests}) == 3
    attempts = [headers["X-Lettermint-Attempt"] for headers, _ in receiver.requests]
    assert attempts == ["1", "2", "3"] * 3 + ["1"] * 3


def test_a_wrong_signature_does_not_verify(relay: Relay, receiver: Receiver) -> None:
    send(relay)
    relay.webhooks.post(receiver.url, SECRET, wrong_signature=True)
    headers, body = receiver.requests[-1]
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)


def test_an_event_can_be_signed_at_another_time(
    relay: Relay, receiver: Receiver
) -> None:
    send(relay)
    event = make_event(relay.messages[0], "message.delivered")
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
    deliveries = relay.webhooks.post(receiver.url, SECRET)
    assert {delivery.status for delivery in deliveries} == {status}
    assert len(receiver.requests) == len(deliveries)


def test_a_receiver_that_does_not_answer_is_recorded(relay: Relay) -> None:
    with receiving() as gone:
        pass
    send(relay)
    delivery, *_ = relay.webhooks.post(gone.url, SECRET)
    assert delivery.status is None
    assert "refused" in delivery.error
    assert "urlopen" not in delivery.error


def test_a_receiver_that_closes_the_connection_is_recorded(relay: Relay) -> None:
    send(relay)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=read_and_close, args=(server,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        delivery = post_event(
            url, make_event(relay.messages[0], "message.created"), SECRET
        )
        thread.join()
    assert delivery.status is None
    assert "closed connection" in delivery.error


def read_and_close(server: socket.socket) -> None:
    """Read a request up to its last byte, and close the connection without an answer."""
    connection, _ = server.accept()
    length = 0
    with connection, connection.makefile("rb") as request:
        while (line := request.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        request.read(length)


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
    deliveries = relay.webhooks.wait_for(12)
    assert deliveries == relay.webhooks.deliveries
    assert [delivery.attempt for delivery in deliveries] == [1, 2] * 6
    events = [envelope["event"] for envelope in receiver.envelopes()]
    assert events[5] == "message.delivered"
    assert events[11] == "message.hard_bounced"
    with pytest.raises(TimeoutError, match=r"12 of 13 webhooks after 0\.01 s"):
        relay.webhooks.wait_for(13, timeout=0.01)


def test_a_subscription_posts_nothing_for_a_refusal(
    relay: Relay, receiver: Receiver
) -> None:
    relay.webhooks.subscribe(receiver.url, SECRET)
    relay.refuse("user@example.com")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(relay)
    send(relay, to="other@example.com")
    deliveries = relay.webhooks.wait_for(3)
    assert {each.event.data["message_id"] for each in deliveries} == {
        relay.messages[0].id
    }


def test_a_slow_receiver_does_not_hold_up_the_mail(
    relay: Relay, receiver: Receiver
) -> None:
    receiver.may_answer.clear()
    relay.webhooks.subscribe(receiver.url, SECRET)
    send(relay)
    send(relay)
    assert relay.webhooks.deliveries == []
    receiver.may_answer.set()
    assert len(relay.webhooks.wait_for(6)) == 6


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
    delivery, *_ = relay.webhooks.post(receiver.url, SECRET)
    assert isinstance(delivery, WebhookDelivery)
    assert SECRET not in repr(delivery)
    assert relay.token not in repr(delivery)
