"""The relay's webhooks, received by a plain web server and checked by the official SDK."""

from __future__ import annotations

import smtplib
import socket
import threading
import time
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
from tests.testing.receiving import SECRET, receiving
from tests.testing.records import received
from tests.testing.relay_client import MESSAGE, send

if TYPE_CHECKING:
    from tests.testing.receiving import Receiver


# Events


def test_the_creation_of_a_message_is_told_once_with_its_addresses() -> None:
    head = (
        b"From: Acme <news@example.com>\r\nTo: a@example.com\r\n"
        b"Cc: b@example.com\r\nReply-To: Help <help@example.com>\r\n\r\n"
    )
    everyone = ("a@example.com", "b@example.com", "c@example.com")
    created, *others = events_for(received(head, recipients=everyone))
    assert created.event == "message.created"
    assert created.data["from"] == {"email": "news@example.com", "name": "Acme"}
    assert created.data["to"] == ["a@example.com"]
    assert created.data["cc"] == ["b@example.com"]
    assert created.data["bcc"] == ["c@example.com"]
    assert created.data["reply_to"] == "help@example.com"
    assert "recipient" not in created.data
    names = [event.event for event in others]
    assert names == ["message.sent", "message.delivered"] * 3


@pytest.mark.parametrize(
    ("address", "events"),
    [
        ("ok+anything@testing.lettermint.co", ["message.delivered"]),
        ("SoftBounce@testing.lettermint.co", ["message.soft_bounced"]),
        ("hardbounce+x@testing.lettermint.co", ["message.hard_bounced"]),
        (
            "spamcomplaint@testing.lettermint.co",
            ["message.delivered", "message.spam_complaint"],
        ),
        ("dsn@testing.lettermint.co", ["message.hard_bounced"]),
        ("hardbounce@example.com", ["message.delivered"]),
    ],
)
def test_a_test_address_stands_for_its_events(address: str, events: list[str]) -> None:
    message = received(recipients=("b@example.com", address))
    made = [event for event in events_for(message) if "recipient" in event.data]
    told = [each.event for each in made if each.data["recipient"] == address]
    assert told == ["message.sent", *events]


def test_a_message_has_the_same_events_each_time_each_with_its_own_id() -> None:
    message = received(recipients=("a@example.com", "b@example.com"))
    first, second = (list(events_for(message)) for _ in range(2))
    assert first == second
    assert len({event.id for event in first}) == 5


@pytest.mark.parametrize(
    ("name", "code", "fields"),
    [
        ("message.policy_rejected", None, {"reason", "score", "spam_symbols"}),
        ("message.soft_bounced", 452, set()),
        ("message.hard_bounced", 550, set()),
        ("message.failed", 554, {"reason"}),
        ("message.suppressed", None, {"reason"}),
        ("message.unsubscribed", None, {"unsubscribed_at"}),
        ("message.opened", None, {"opened_at", "first_open", "user_agent", "bot"}),
        ("message.clicked", None, {"clicked_at", "destination_url", "user_agent"}),
    ],
)
def test_any_event_can_be_made(name: str, code: int | None, fields: set[str]) -> None:
    message = received(recipients=("a@example.com", "b@example.com"))
    event = make_event(message, name)
    of_the_message = name == "message.policy_rejected"
    assert event.event == name
    assert event.data.get("recipient") == (None if of_the_message else "a@example.com")
    assert event.data["metadata"] == event.data["tags"] == []
    assert event.data["tag"] is None
    assert fields <= event.data.keys()
    response: Any = event.data.get("response", {})
    assert response.get("status_code") == code
    assert response.get("enhanced_status_code", "")[:1] == str(code or "")[:1]


# Posting


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
    moment = headers["X-Lettermint-Delivery"]
    assert headers["X-Lettermint-Signature"].startswith(f"t={moment},v1=")
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
    context = receiver.events[-1]["context"]
    assert context.keys() == {"scope", "team_id", "project_id", "route_id"}
    assert relay.token not in repr(delivery)
    assert SECRET not in repr(delivery)


@pytest.mark.parametrize(
    "options", [{"wrong_signature": True}, {"timestamp": int(time.time()) - 301}]
)
def test_a_wrong_or_old_signature_does_not_verify(
    receiver: Receiver, options: dict[str, Any]
) -> None:
    post_event(receiver.url, make_event(received(), "message.sent"), SECRET, **options)
    ((headers, body),) = receiver.requests
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)


def test_the_signature_is_that_of_the_documentation() -> None:
    assert sign(b"{}", "whsec_test", 1700000000) == (
        "t=1700000000,v1="
        "35495024f4ef3f94e5a93e22221544c4b75e9a42300cd965ab81cb85cd994e91"
    )


def posted(url: str) -> WebhookDelivery:
    return post_event(url, make_event(received(), "message.sent"), SECRET)


@pytest.mark.parametrize("status", [302, 400, 503])
def test_the_status_of_the_answer_is_recorded(receiver: Receiver, status: int) -> None:
    receiver.status = status
    delivery = posted(receiver.url)
    assert (delivery.status, delivery.error) == (status, "")
    assert len(receiver.requests) == 1


def test_a_receiver_that_does_not_run_is_recorded() -> None:
    with receiving() as gone:
        pass
    delivery = posted(gone.url)
    assert delivery.status is None
    assert "refused" in delivery.error
    assert "urlopen" not in delivery.error


def test_a_receiver_that_closes_the_connection_is_recorded() -> None:
    def read_and_close() -> None:
        connection, _ = server.accept()
        with connection:
            request = connection.recv(65536)
            while b'"context"' not in request:
                request += connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=read_and_close)
        thread.start()
        delivery = posted(f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()
    assert delivery.status is None
    assert "closed connection" in delivery.error


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "127.0.0.1/hook",
        "http://",
        "http://[::1/hook",
        "http://localhost:65536/hook",
        "http://localhost:0/hook",
        "http://localhost/hook/é",
    ],
)
def test_an_address_that_is_not_of_the_web_is_a_mistake(url: str, relay: Relay) -> None:
    wrong = pytest.raises(ValueError, match="is not an http:// or https:// address")
    with wrong:
        posted(url)
    with wrong:
        relay.webhooks.subscribe(url, SECRET)


# Subscriptions


def test_a_subscription_posts_messages_only(relay: Relay, receiver: Receiver) -> None:
    seen: list[WebhookDelivery] = []
    relay.webhooks.subscribe(receiver.url, SECRET, attempts=2, on_delivery=seen.append)
    relay.refuse("no@example.com")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(relay, to="no@example.com")
    send(relay, to="dsn@testing.lettermint.co")
    deliveries = relay.webhooks.wait_for(6)
    assert deliveries == relay.webhooks.deliveries
    assert [delivery.attempt for delivery in deliveries] == [1, 2] * 3
    names = [each["event"] for each in receiver.events[::2]]
    assert names == ["message.created", "message.sent", "message.hard_bounced"]
    (first, body), (second, again) = receiver.requests[:2]
    assert body == again
    assert first["X-Lettermint-Attempt"] == "1"
    assert second["X-Lettermint-Attempt"] == "2"
    with pytest.raises(TimeoutError, match=r"6 of 7 webhooks after 0\.01 s"):
        relay.webhooks.wait_for(7, timeout=0.01)
    relay.stop()
    assert seen == deliveries


def test_a_slow_receiver_does_not_delay_mail(relay: Relay, receiver: Receiver) -> None:
    receiver.may_answer.clear()
    relay.webhooks.subscribe(receiver.url, SECRET)
    send(relay)
    send(relay)
    assert relay.webhooks.deliveries == []
    receiver.may_answer.set()
    relay.webhooks.wait_for(6)


def test_subscriptions_end_with_the_relay(receiver: Receiver) -> None:
    before = threading.active_count()
    relay = Relay()
    with relay:
        relay.webhooks.subscribe(receiver.url, SECRET)
    with relay:
        send(relay)
    assert relay.webhooks.deliveries == []
    assert threading.active_count() == before
