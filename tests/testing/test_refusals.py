"""What the relay keeps of refusals, whom it tells, and where it listens."""

from __future__ import annotations

import smtplib
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.backend import EmailBackend
from django_lettermint.testing import Refusal, Relay
from tests.sending import message
from tests.testing.relay_client import MESSAGE, client, send

if TYPE_CHECKING:
    from pathlib import Path


def test_a_refused_message_is_kept_with_the_rule_and_its_content(relay: Relay) -> None:
    wrong = b"X-LM-Tag: a@b\r\n" + MESSAGE
    with pytest.raises(smtplib.SMTPDataError):
        send(relay, wrong)
    [refusal] = relay.refusals
    assert (refusal.command, refusal.code) == ("DATA", 550)
    assert refusal.text == "5.6.0 The tag is invalid"
    assert refusal.content == wrong
    assert refusal.headers["Subject"] == "Hi"
    assert refusal.mail_from == "sender@example.com"
    assert refusal.recipients == ("user@example.com",)
    assert refusal.security == "tls"
    assert refusal.tls.startswith("TLSv1.")


def test_refused_addresses_and_logins_are_kept_in_order(relay: Relay) -> None:
    relay.refuse("no@example.com")
    relay.refuse("spam@example.com", 550, "5.7.1 Not verified", verb="MAIL")
    with pytest.raises(smtplib.SMTPAuthenticationError):
        client(relay, token="lm_wrong")
    with client(relay) as connection:
        connection.mail("spam@example.com")
        connection.mail("sender@example.com")
        connection.rcpt("user@example.com")
        connection.rcpt("no@example.com")
    *logins, sender, recipient = relay.refusals
    assert {each.command for each in logins} == {"AUTH"}
    assert (sender.command, sender.address) == ("MAIL", "spam@example.com")
    assert (recipient.command, recipient.address) == ("RCPT", "no@example.com")
    assert recipient.recipients == ("user@example.com",)
    assert recipient.content == b""
    assert "lm_wrong" not in repr(relay.refusals)


def test_clear_forgets_refusals(relay: Relay) -> None:
    with pytest.raises(smtplib.SMTPDataError):
        send(relay, b"X-LM-Tag: a@b\r\n\r\n")
    relay.clear()
    assert relay.refusals == []


def test_a_listener_gets_messages_and_refusals_that_are_kept_by_then(
    relay: Relay,
) -> None:
    heard: list[Any] = []

    def listener(record: Any) -> None:
        kept: list[Any] = [*relay.messages, *relay.refusals]
        heard.append((record, record in kept))

    relay.add_listener(listener)
    send(relay)
    with pytest.raises(smtplib.SMTPDataError):
        send(relay, b"X-LM-Tag: a@b\r\n\r\n")
    relay.remove_listener(listener)
    send(relay)
    [(first, first_kept), (second, second_kept)] = heard
    assert first is relay.messages[0]
    assert isinstance(second, Refusal)
    assert first_kept
    assert second_kept


def test_tokens_of_one_project_share_its_idempotency_keys() -> None:
    keyed = b"Idempotency-Key: order-1\r\n" + MESSAGE
    with Relay(other_tokens=["lm_other"]) as relay:
        send(relay, keyed)
        with client(relay, token="lm_other") as connection:
            connection.sendmail("sender@example.com", ["user@example.com"], keyed)
        assert len(relay.messages) == 1
        assert relay.statistics.replays == 1


def test_it_can_serve_in_clear_on_loopback() -> None:
    with Relay(ports={"plaintext": 0}) as relay:
        options = relay.options("plaintext")
        assert "ca_file" not in options
        EmailBackend(**options).send_messages([message()])
        [received] = relay.messages
    assert (received.security, received.tls) == ("plaintext", "")


def test_certificates_in_a_folder_stay_after_the_relay(tmp_path: Path) -> None:
    with Relay(ca_folder=tmp_path) as relay:
        ca_file = relay.ca_file
    with Relay(ca_folder=tmp_path) as relay:
        assert relay.ca_file == ca_file
        # The client trusts the file that the first relay wrote.
        send(relay)
