"""The local relay's logins, by smtplib and word by word."""

from __future__ import annotations

import base64
import smtplib
from typing import TYPE_CHECKING

import pytest

from django_lettermint.testing import Logins, Relay
from tests.testing.relay_client import anonymous, client

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def running() -> Iterator[Relay]:
    with Relay() as relay:
        yield relay


@pytest.fixture
def connection(running: Relay) -> Iterator[smtplib.SMTP]:
    with anonymous(running) as connection:
        yield connection


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_each_mechanism_works_alone(mechanism: str) -> None:
    with Relay(mechanisms=[mechanism]) as relay:
        with client(relay) as connection:
            assert connection.esmtp_features["auth"].strip() == mechanism
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            client(relay, token="wrong")
        assert refused.value.smtp_code == 535
        assert "5.7.8 " in str(refused.value.smtp_error)
        assert relay.logins == Logins(attempts=2, successes=1)


@pytest.mark.parametrize("dialogue", [
    ("AUTH PLAIN", b64("\0lettermint\0lm_test_token")),
    (f"auth plain {b64(chr(0) + 'lettermint' + chr(0) + 'lm_test_token')}",),
    ("AUTH LOGIN", b64("lettermint"), b64("lm_test_token")),
    (f"AUTH LOGIN {b64('lettermint')}", b64("lm_test_token")),
])  # fmt: skip
def test_a_login_can_go_with_or_without_initial_response(
    connection: smtplib.SMTP, dialogue: tuple[str, ...]
) -> None:
    *steps, last = dialogue
    for step in steps:
        assert connection.docmd(step)[0] == 334
    assert connection.docmd(last)[0] == 235
    assert connection.docmd("AUTH PLAIN")[0] == 503


@pytest.mark.parametrize(("dialogue", "code"), [
    ((f"AUTH PLAIN {b64(chr(0) + 'somebody' + chr(0) + 'lm_test_token')}",), 535),
    (("AUTH LOGIN", b64("somebody"), b64("lm_test_token")), 535),
    (("AUTH CRAM-MD5", b64("somebody 0123")), 535),
    (("AUTH CRAM-MD5", b64("lettermint 0123")), 535),
    (("AUTH CRAM-MD5 " + b64("lettermint 0123"),), 501),
    (("AUTH PLAIN =",), 501),
    (("AUTH PLAIN " + b64("no parts"),), 501),
    (("AUTH LOGIN", "*"), 501),
    (("AUTH LOGIN", "not base64"), 501),
    (("AUTH XOAUTH2",), 504),
    (("AUTH",), 504),
])  # fmt: skip
def test_a_login_that_is_not_right_is_refused(
    connection: smtplib.SMTP, dialogue: tuple[str, ...], code: int
) -> None:
    *steps, last = dialogue
    for step in steps:
        assert connection.docmd(step)[0] == 334
    assert connection.docmd(last)[0] == code
    assert connection.mail("a@example.com") == (530, b"5.7.0 Authentication required")


def test_auth_needs_ehlo(running: Relay) -> None:
    with anonymous(running) as connection:
        connection.helo()
        assert connection.docmd("AUTH PLAIN")[0] == 503


def test_without_the_keyword_no_login_is_possible() -> None:
    with Relay(without={"AUTH"}) as relay, anonymous(relay) as connection:
        assert not connection.has_extn("auth")
        assert connection.docmd("AUTH PLAIN")[0] == 504


def test_quit_takes_no_argument(relay: Relay) -> None:
    with client(relay) as connection:
        assert connection.docmd("QUIT", "now")[0] == 501
        assert connection.noop()[0] == 250
