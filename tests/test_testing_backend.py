"""The backend for tests without sockets: an outbox that keeps Lettermint's rules."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import django
import pytest
from anymail.exceptions import AnymailCancelSend, AnymailError
from anymail.signals import pre_send
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage, EmailMultiAlternatives, send_mail
from django.test import override_settings

from django_lettermint.backend import EmailBackend as RealBackend
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.results import Outcome, Phase
from django_lettermint.testing.backend import EmailBackend
from tests.listening import listening, names, receiver
from tests.programs import ROOT, environment

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


def message(**others: Any) -> EmailMessage:
    fields = {"to": ["ada@example.com"], **others}
    return LettermintMessage("Your order", "Sent.", "shop@example.com", **fields)


def send(*messages: EmailMessage, **options: Any) -> int:
    return EmailBackend(**options).send_messages(messages)


def test_a_message_goes_to_the_outbox_as_a_copy(outbox: list[Any]) -> None:
    order = message(tag="order shipped", metadata={"order_id": 4711})

    assert send(order) == 1

    [copy] = outbox
    assert copy is not order
    assert (copy.subject, copy.to) == ("Your order", ["ada@example.com"])
    assert (copy.tag, copy.metadata) == ("order shipped", {"order_id": 4711})


def test_the_copy_shows_what_lettermint_would_read(outbox: list[Any]) -> None:
    defaults = {"route": "outgoing", "metadata": {"app": "shop"}}

    with extras(tag="order shipped"):
        send(message(cc=["bob@example.com"]), send_defaults=defaults)

    [received] = outbox[0].received
    assert received.mail_from == "shop@example.com"
    assert received.recipients == ("ada@example.com", "bob@example.com")
    assert (received.route, received.tag) == ("outgoing", "order shipped")
    assert received.metadata["app"] == "shop"
    assert received.headers["Subject"] == "Your order"
    assert received.mime.get_content() == "Sent.\r\n"


def described(received: Any) -> dict[str, Any]:
    """Return what was read of a message, without what differs between two sends."""
    head, _, body = received.content.partition(b"\r\n\r\n")
    per_message = (b"Message-ID:", b"Date:", b"X-LM-Metadata-django_message_id:")
    return {
        "sender": received.mail_from,
        "recipients": received.recipients,
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
        {"body": "Grüße", "tag": "a b", "metadata": {"k": "é"}},
        {"to": ["ünal@example.com"], "bcc": ["eve@example.com"]},
        {"headers": {"X-Tag": "t", "X-Metadata-a": "1"}, "route": "outgoing"},
        {"to": [f"user{number}@example.com" for number in range(51)]},
    ],
    ids=["plain", "8 bit", "SMTPUTF8", "raw headers", "51 recipients"],
)
def test_what_it_reads_is_what_arrives_at_a_relay(
    relay: Relay, outbox: list[Any], fields: dict[str, Any]
) -> None:
    first, second = (
        LettermintMessage(
            "Hi",
            **{
                "from_email": "shop@example.com",
                "to": ["ada@example.com"],
                "idempotency_key": "k",
                **fields,
            },
        )
        for _ in range(2)
    )

    RealBackend(**relay.options()).send_messages([first])
    send(second, **relay.options())

    kept = [described(each) for each in outbox[0].received]
    assert kept == [described(each) for each in relay.messages]
    assert second.anymail_status.recipients.keys() == (
        first.anymail_status.recipients.keys()
    )


def test_what_breaks_a_rule_is_refused_and_not_in_the_outbox(outbox: list[Any]) -> None:
    wrong = message()
    wrong.tag = "orders@shop"  # type: ignore[attr-defined]

    with listening() as heard, pytest.raises(LettermintInvalidMessage, match="tag"):
        send(wrong)

    assert outbox == []
    assert names(heard) == ["message_failed"]
    result = wrong.anymail_status.esp_response  # type: ignore[attr-defined]
    assert (result.outcome, result.phase) == (Outcome.NOT_SENT, Phase.MESSAGE)


def test_the_first_error_is_raised_after_all_messages(outbox: list[Any]) -> None:
    with pytest.raises(LettermintInvalidMessage) as caught:
        send(message(tag="a@b"), message(), message(route="a b"))

    assert "tag" in str(caught.value)
    outcomes = [each.outcome for each in caught.value.results]
    assert outcomes == [Outcome.NOT_SENT, Outcome.SENT, Outcome.NOT_SENT]
    assert len(outbox) == 1


def test_it_fails_silently_when_told_to(outbox: list[Any]) -> None:
    assert send(message(tag="a@b"), message(), fail_silently=True) == 1
    assert len(outbox) == 1


def test_the_status_and_the_signals_are_those_of_a_sent_message(
    outbox: list[Any],
) -> None:
    order = message(cc=["Bob <bob@example.com>"])

    with listening() as heard:
        send(order)

    assert names(heard) == ["post_send", "message_sent"]
    assert heard[1][1]["sender"] is EmailBackend
    status = order.anymail_status  # type: ignore[attr-defined]
    assert status.status == {"queued"}
    assert list(status.recipients) == ["ada@example.com", "bob@example.com"]
    result = status.esp_response
    assert (result.outcome, result.phase, result.code) == (
        Outcome.SENT,
        Phase.DONE,
        250,
    )
    [received] = outbox[0].received
    assert received.metadata["django_message_id"] == status.message_id
    assert outbox[0].anymail_status is status


def test_receivers_find_the_message_in_the_outbox() -> None:
    from django_lettermint.signals import message_sent

    found: list[int] = []
    with receiver(message_sent, lambda **_: found.append(len(mail.outbox))):
        send(message())

    assert found == [1]


def test_pre_send_may_change_and_cancel_messages(outbox: list[Any]) -> None:
    def filter_mail(message: Any, **kwargs: Any) -> None:
        if message.subject == "No":
            raise AnymailCancelSend
        message.tag = "filtered"

    refused, taken = message(), message()
    refused.subject = "No"
    with receiver(pre_send, filter_mail):
        assert send(refused, taken) == 1

    [copy] = outbox
    assert copy.received[0].tag == "filtered"
    assert refused.anymail_status.esp_response.phase is Phase.CANCELLED  # type: ignore[attr-defined]


def test_a_message_without_recipients_is_not_sent(outbox: list[Any]) -> None:
    assert send(message(to=[])) == 0
    assert outbox == []


def test_what_is_no_message_is_refused_and_the_others_are_taken(
    outbox: list[Any],
) -> None:
    with pytest.raises(LettermintInvalidMessage, match="EmailMessage"):
        send("no message", message())  # type: ignore[arg-type]
    assert len(outbox) == 1


@pytest.mark.parametrize("messages", [None, []])
def test_nothing_to_send_is_fine(messages: Any) -> None:
    assert EmailBackend().send_messages(messages) == 0


def test_merged_mail_is_received_once_for_each_recipient(outbox: list[Any]) -> None:
    newsletter = message(to=["a@example.com", "b@example.com"])
    newsletter.merge_metadata = {"a@example.com": {"n": "1"}}  # type: ignore[attr-defined]

    send(newsletter)

    first, second = outbox[0].received
    assert (first.recipients, second.recipients) == (
        ("a@example.com",),
        ("b@example.com",),
    )
    assert first.metadata["n"] == "1"
    assert "n" not in second.metadata


def test_an_html_mail_is_read_like_any_other(outbox: list[Any]) -> None:
    both = EmailMultiAlternatives("Hi", "Text", "a@example.com", ["b@example.com"])
    both.attach_alternative("<p>HTML</p>", "text/html")

    send(both)

    mime = outbox[0].received[0].mime
    html = mime.get_body(("html",))
    assert html.get_content() == "<p>HTML</p>"


def test_it_needs_no_token_and_wants_other_options_to_be_right() -> None:
    assert EmailBackend().config.endpoint.security == "tls"
    with pytest.raises(ImproperlyConfigured, match="security"):
        EmailBackend(security="sometimes")
    with pytest.raises(ImproperlyConfigured, match="security"):
        EmailBackend(api_token="lm_test", security="sometimes")


def test_an_outbox_is_made_where_there_is_none() -> None:
    del mail.outbox
    send(message())
    assert len(mail.outbox) == 1


def test_opening_and_closing_do_nothing() -> None:
    with EmailBackend() as connection:
        assert connection.open() is None


@override_settings(EMAIL_BACKEND=PATH, LETTERMINT_API_TOKEN="lm_test_token")
def test_a_project_uses_it_by_its_setting(outbox: list[Any]) -> None:
    assert send_mail("Hi", "", "a@example.com", ["b@example.com"]) == 1
    with pytest.raises(AnymailError):
        send_mail("Hi\nBcc: x", "", "a@example.com", ["b@example.com"])
    assert [each.subject for each in outbox] == ["Hi"]


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS came with Django 6.1")
def test_a_project_uses_it_as_a_mailer(outbox: list[Any]) -> None:
    mailers = {
        "default": {"BACKEND": PATH},
        "news": {"BACKEND": PATH, "OPTIONS": {"send_defaults": {"route": "news"}}},
    }
    with override_settings(MAILERS=mailers):
        EmailMessage("Hi", "", "a@example.com", ["b@example.com"]).send()
        EmailMessage("Hi", "", "a@example.com", ["b@example.com"]).send(using="news")
    assert [each.sent_using for each in outbox] == ["default", "news"]
    assert [each.received[0].route for each in outbox] == [None, "news"]


@override_settings(EMAIL_BACKEND=PATH, LETTERMINT_API_TOKEN="lm_test_token")
def test_a_message_that_was_sent_can_be_pickled(outbox: list[Any]) -> None:
    order = message()
    order.send()
    assert pickle.loads(pickle.dumps(order)).subject == "Your order"


def test_it_needs_no_extra_and_no_socket() -> None:
    program = """
import socket, sys
sys.modules["trustme"] = None
socket.socket.connect = None
import django
django.setup()
from django.core import mail
from django_lettermint.testing.backend import EmailBackend
message = mail.EmailMessage("Hi", "", "a@example.com", ["b@example.com"])
assert EmailBackend().send_messages([message]) == len(mail.outbox) == 1
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment(),
        cwd=ROOT,
        check=True,
        timeout=50,
    )


def test_the_resolver_of_tenants_is_asked_once_for_each_call() -> None:
    asked: list[str] = []

    def tenants(name: str) -> dict[str, str]:
        asked.append(name)
        return {"api_token": "lm_acme"}

    sender = EmailBackend(tenants=tenants, tenant="acme")
    for _ in range(2):
        sender.send_messages([message(), message()])

    assert asked == ["acme", "acme"]
