"""The errors: also smtplib's and Anymail's, and whole after a copy or a pickle."""

from __future__ import annotations

import copy
import pickle
import smtplib
from typing import Any

import django
import pytest
from anymail.exceptions import AnymailAPIError, AnymailError, AnymailRecipientsRefused
from django.core import mail

from django_lettermint import exceptions
from django_lettermint.envelope import Envelope
from django_lettermint.results import Outcome, Phase, RecipientResult, SendResult

#: Without a reply: transient, retry_safe; and the classes that each is as well.
KINDS: dict[type[Any], tuple[bool, bool, tuple[type[Exception], ...]]] = {
    exceptions.ConnectFailed: (True, True, (smtplib.SMTPConnectError, ConnectionError)),
    exceptions.TLSFailed: (True, True, (smtplib.SMTPConnectError,)),
    exceptions.AuthenticationFailed: (False, True, (smtplib.SMTPAuthenticationError,)),
    exceptions.SenderRefused: (True, True, (smtplib.SMTPSenderRefused,)),
    exceptions.RecipientsRefused: (
        True,
        True,
        (smtplib.SMTPRecipientsRefused, AnymailRecipientsRefused),
    ),
    exceptions.MessageRefused: (True, True, (smtplib.SMTPDataError,)),
    exceptions.ConnectionLost: (True, True, (smtplib.SMTPServerDisconnected,)),
    exceptions.DeliveryUnknown: (True, False, (smtplib.SMTPServerDisconnected,)),
    exceptions.PoolTimeout: (True, True, (TimeoutError,)),
    exceptions.PoolClosed: (True, True, (smtplib.SMTPServerDisconnected,)),
    exceptions.EnqueueFailed: (True, False, ()),
}
INVALID: list[type[Any]] = [
    exceptions.LettermintInvalidMessage,
    exceptions.InvalidHeader,
]
RESULT = SendResult(
    outcome=Outcome.UNKNOWN,
    message_id="m-1",
    idempotency_key="k-1",
    recipients={"ann@example.com": RecipientResult(status="unknown")},
    phase=Phase.COMMIT,
)
ENVELOPE = Envelope(
    mail_from="shop@example.com",
    recipients=("ann@example.com",),
    header=b"Subject: Hi\r\n",
    body=b"",
    message_id="m-1",
    idempotency_key="k-1",
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_is_what_smtplib_and_anymail_raise(kind: type[Any]) -> None:
    transient, retry_safe, bases = KINDS[kind]
    ours = (exceptions.LettermintError, AnymailAPIError)
    for base in (*bases, *ours, smtplib.SMTPException, OSError):
        assert issubclass(kind, base)
    error = kind("x")
    assert (error.transient, error.retry_safe) == (transient, retry_safe)
    assert (error.smtp_code, error.smtp_error) == (0, b"")


@pytest.mark.parametrize("kind", INVALID)
def test_an_invalid_message_is_a_value_error_and_no_smtp_error(kind: type[Any]) -> None:
    error: Any = kind("x")
    assert (error.transient, error.retry_safe) == (False, True)
    assert isinstance(error, AnymailError)
    assert isinstance(error, ValueError)
    assert not isinstance(error, OSError)


@pytest.mark.parametrize("value", ["Hello\n", "a\r\nBcc: eve@example.com", "\r"])
def test_what_is_refused_for_a_line_break_is_djangos_error_too(value: str) -> None:
    error = exceptions.invalid_message("subject: no", value)

    assert str(error) == "subject: no"
    assert type(pickle.loads(pickle.dumps(error))) is exceptions.InvalidHeader
    if django.VERSION < (6, 0):
        assert isinstance(error, mail.BadHeaderError)


@pytest.mark.parametrize("value", [None, "Hello", "", 7, b"a\n"])
def test_what_is_refused_for_another_reason_is_not(value: object) -> None:
    error = exceptions.invalid_message("subject: no", value)

    assert type(error) is exceptions.LettermintInvalidMessage


@pytest.mark.parametrize("again", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("kind", [*KINDS, *INVALID])
def test_an_error_can_be_copied_and_pickled_whole(kind: type[Any], again: Any) -> None:
    error = kind("what happened; what to do")
    assert (error.result, error.results) == (None, ())
    error.result = RESULT
    error.results = (RESULT,)
    error.envelopes = [ENVELOPE]
    other = again(error)
    assert type(other) is kind
    assert str(other) == "what happened; what to do"
    assert other.args == (str(other),)
    assert other.result == RESULT
    assert other.results == (RESULT,)
    assert other.envelopes == [ENVELOPE]
    other.result = None
    assert error.result == RESULT


@pytest.mark.parametrize("code", [0, 250, 399, 400, 499, 500])
def test_the_code_of_a_reply_tells_whether_later_may_help(code: int) -> None:
    error = exceptions.MessageRefused("refused").with_reply(code, "grüße")
    assert (error.smtp_code, error.smtp_error) == (code, "grüße".encode())
    assert error.transient is (code < 500)
    assert pickle.loads(pickle.dumps(error)).smtp_code == code
    # A reply that is no refusal does not make an error transient.
    login = exceptions.AuthenticationFailed("no").with_reply(code, "")
    assert login.transient is (400 <= code < 500)


@pytest.mark.parametrize(
    ("step", "code", "limits"),
    [
        ("greeting", 400, True),
        ("greeting", 499, True),
        ("greeting", 500, False),
        ("EHLO", 421, True),
        ("EHLO", 450, False),
        ("AUTH", 421, True),
    ],
)
def test_a_refused_connection_may_speak_of_a_limit_of_connections(
    step: str, code: int, *, limits: bool
) -> None:
    error = exceptions.ConnectFailed("no").with_reply(code, "")
    error.step = step
    assert error.limits_connections is limits


def test_an_unknown_delivery_carries_what_repeats_it() -> None:
    error = exceptions.DeliveryUnknown("x")
    assert (error.envelope, error.idempotency_key) == (None, None)
    error.envelopes = [ENVELOPE]
    assert (error.envelope, error.idempotency_key) == (ENVELOPE, "k-1")
