"""The backend for tests without sockets: an outbox that keeps Lettermint's rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_lettermint.backend import EmailBackend as RealBackend
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.results import Outcome, Phase
from django_lettermint.signals import message_sent
from django_lettermint.testing.backend import EmailBackend
from tests.listening import listening, names, receiver
from tests.programs import output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_lettermint.testing import Relay

PATH = "django_lettermint.testing.backend.EmailBackend"


@pytest.fixture(autouse=True)
def outbox() -> Iterator[list[Any]]:
    """Begin with an empty outbox, as Django's and pytest-django's tests do."""
    mail.outbox = []
    yield mail.outbox
    mail.outbox = []


def message(**others: Any) -> Any:
    fields = {"from_email": "shop@example.com", "to": ["ada@example.com"], **others}
    return LettermintMessage("Your order", **{"body": "Sent.", **fields})


def send(*messages: Any, **options: Any) -> int:
    return EmailBackend(**options).send_messages(messages)


# What is taken


def test_a_message_goes_to_the_outbox_as_a_copy_with_what_lettermint_would_read(
    outbox: list[Any],
) -> None:
    order = message(cc=["bob@example.com"], metadata={"order_id": 4711})
    with extras(tag="order shipped"):
        assert send(order, send_defaults={"route": "outgoing"}) == 1
    [copy] = outbox
    assert copy is not order
    assert (copy.subject, copy.metadata) == ("Your order", {"order_id": 4711})
    [received] = copy.received
    assert received.recipients == ("ada@example.com", "bob@example.com")
    assert (received.route, received.tag) == ("outgoing", "order shipped")
    assert received.metadata["order_id"] == "4711"


def described(received: Any) -> dict[str, Any]:
    """Return what was read of a message, without what differs between two sends."""
    head, _, body = received.content.partition(b"\r\n\r\n")
    per_message = (b"Message-ID:", b"Date:", b"X-LM-Metadata-django_message_id:")
    return {
        "envelope": (received.mail_from, received.recipients),
        "extras": (received.route, received.tag, received.idempotency_key),
        "metadata": received.metadata.keys(),
        "kind": (received.smtputf8, received.body_8bit),
        "head": [
            line for line in head.split(b"\r\n") if not line.startswith(per_message)
        ],
        "body": body,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"body": "Grüße", "tag": "a b", "metadata": {"k": "é"}, "route": "outgoing"},
        {"to": ["ünal@example.com"], "bcc": ["eve@example.com"]},
        {"to": [f"user{number}@example.com" for number in range(51)]},
        {
            "to": ["a@example.com", "b@example.com"],
            "merge_metadata": {"a@example.com": {"n": "1"}},
        },
    ],
    ids=["plain", "8 bit", "SMTPUTF8", "51 recipients", "merged"],
)
def test_what_it_reads_is_what_arrives_at_a_relay(
    relay: Relay, outbox: list[Any], fields: dict[str, Any]
) -> None:
    merge = fields.pop("merge_metadata", None)
    first, second = (message(idempotency_key="k", **fields) for _ in range(2))
    first.merge_metadata = second.merge_metadata = merge
    RealBackend(**relay.options()).send_messages([first])
    send(second, **relay.options())
    kept = [described(each) for each in outbox[0].received]
    assert kept == [described(each) for each in relay.messages]
    assert (
        second.anymail_status.recipients.keys()
        == first.anymail_status.recipients.keys()
    )


def test_the_status_and_signals_are_those_of_a_sent_message(outbox: list[Any]) -> None:
    order = message()
    found: list[int] = []
    with (
        receiver(message_sent, lambda **_: found.append(len(outbox))),
        listening() as heard,
    ):
        send(order)
    assert names(heard) == ["post_send", "message_sent"]
    assert heard[1][1]["sender"] is EmailBackend
    assert found == [1]
    status = order.anymail_status
    assert outbox[0].anymail_status is status
    assert status.status == {"queued"}
    result = status.esp_response
    assert (result.outcome, result.phase) == (Outcome.SENT, Phase.DONE)
    assert result.code == 250
    [received] = outbox[0].received
    assert received.metadata["django_message_id"] == status.message_id


# What is not


def test_the_first_error_is_raised_after_all_messages(outbox: list[Any]) -> None:
    wrong = message(tag="orders@shop")
    with listening() as heard, pytest.raises(LettermintInvalidMessage) as caught:
        send(wrong, message(), "no message")
    assert "tag" in str(caught.value)
    outcomes = [each.outcome for each in caught.value.results]
    assert outcomes == [Outcome.NOT_SENT, Outcome.SENT, Outcome.NOT_SENT]
    assert wrong.anymail_status.esp_response.phase is Phase.MESSAGE
    assert names(heard)[:3] == ["message_failed", "post_send", "message_sent"]
    assert len(outbox) == 1


def test_it_fails_silently_when_told_to() -> None:
    assert send(message(tag="a@b"), message(), fail_silently=True) == 1


@pytest.mark.parametrize("messages", [None, [message(to=[])]])
def test_nothing_to_send_is_no_error(messages: Any, outbox: list[Any]) -> None:
    assert EmailBackend().send_messages(messages) == 0
    assert outbox == []


# How it is set up


def test_it_needs_no_token_but_right_options() -> None:
    assert EmailBackend().config.endpoint.security == "tls"
    with pytest.raises(ImproperlyConfigured, match="security"):
        EmailBackend(security="sometimes")
    with pytest.raises(ImproperlyConfigured, match="security"):
        EmailBackend(api_token="lm_test", security="sometimes")


def test_opening_makes_no_connection_but_an_outbox() -> None:
    del mail.outbox
    with EmailBackend() as connection:
        assert connection.open() is None
    assert mail.outbox == []


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS came with Django 6.1")
def test_a_project_uses_it_as_a_mailer(outbox: list[Any]) -> None:
    mailers = {
        "default": {"BACKEND": PATH},
        "news": {"BACKEND": PATH, "OPTIONS": {"send_defaults": {"route": "news"}}},
    }
    with override_settings(MAILERS=mailers):
        message().send()
        message().send(using="news")
    assert [each.sent_using for each in outbox] == ["default", "news"]
    assert [each.received[0].route for each in outbox] == [None, "news"]


def test_it_needs_no_extra_and_no_socket() -> None:
    before = (
        "import socket, sys\nsys.modules['trustme'] = socket.socket.connect = None\n"
    )
    text = """
from django.core import mail
from django_lettermint.testing.backend import EmailBackend
message = EmailMessage("Hi", "", "a@example.com", ["b@example.com"])
assert EmailBackend().send_messages([message]) == len(mail.outbox) == 1
"""
    assert output(text, {"api_token": "lm_unused"}, before=before) == []


def test_the_resolver_of_tenants_is_asked_once_for_each_call() -> None:
    asked: list[str] = []

    def tenants(name: str) -> dict[str, str]:
        asked.append(name)
        return {"api_token": "lm_acme"}

    sender = EmailBackend(tenants=tenants, tenant="acme")
    for _ in range(2):
        sender.send_messages([message(), message()])

    assert asked == ["acme", "acme"]
