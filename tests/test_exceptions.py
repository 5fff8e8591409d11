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

KINDS: dict[type[exceptions.LettermintError], tuple[type[Exception], ...]] = {
    exceptions.ConnectFailed: (smtplib.SMTPConnectError, ConnectionError),
    exceptions.TLSFailed: (smtplib.SMTPConnectError,),
    exceptions.AuthenticationFailed: (smtplib.SMTPAuthenticationError,),
    exceptions.SenderRefused: (smtplib.SMTPSenderRefused,),
    exceptions.RecipientsRefused: (
        smtplib.SMTPRecipientsRefused,
        AnymailRecipientsRefused,
    ),
    exceptions.MessageRefused: (smtplib.SMTPDataError,),
    exceptions.ConnectionLost: (smtplib.SMTPServerDisconnected,),
    exceptions.DeliveryUnknown: (smtplib.SMTPServerDisconnected,),
    exceptions.PoolTimeout: (TimeoutError,),
    exceptions.PoolClosed: (smtplib.SMTPServerDisconnected,),
    exceptions.EnqueueFailed: (),
}
ALL = [
    *KINDS,
    exceptions.LettermintError,
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
def test_each_error_is_what_smtplib_and_anymail_raise(
    kind: type[exceptions.LettermintError],
) -> None:
    for base in (
        *KINDS[kind],
        exceptions.LettermintError,
        AnymailAPIError,
        smtplib.SMTPException,
        OSError,
    ):
        assert issubclass(kind, base)


def test_an_invalid_message_is_a_value_error_and_no_smtp_error() -> None:
    kind = exceptions.LettermintInvalidMessage
    assert issubclass(kind, AnymailError)
    assert issubclass(kind, ValueError)
    assert not issubclass(kind, OSError)
    assert not issubclass(kind, exceptions.LettermintError)
    assert kind("x").retry_safe
    assert not kind("x").transient


@pytest.mark.parametrize("value", ["Hello\n", "a\r\nBcc: eve@example.com", "\r"])
def test_what_is_refused_for_a_line_break_is_djangos_error_too(value: str) -> None:
    error = exceptions.invalid_message("subject: no", value)

    assert str(error) == "subject: no"
    assert type(pickle.loads(pickle.dumps(error))) is exceptions.InvalidHeader
    with pytest.raises(exceptions.LettermintInvalidMessage):
        raise error
    if django.VERSION < (6, 0):
        assert isinstance(error, mail.BadHeaderError)
    else:
        assert isinstance(error, ValueError)


@pytest.mark.parametrize("value", [None, "Hello", "", 7, b"a\n"])
def test_what_is_refused_for_another_reason_is_not(value: object) -> None:
    error = exceptions.invalid_message("subject: no", value)

    assert type(error) is exceptions.LettermintInvalidMessage


def test_every_error_is_listed_here() -> None:
    found = {
        each
        for each in vars(exceptions).values()
        if isinstance(each, type) and each.__module__ == exceptions.__name__
    }
    public = {each for each in found if not each.__name__.startswith("_")}
    assert public == set(ALL)


@pytest.mark.parametrize("kind", ALL)
def test_an_error_says_its_text_and_nothing_else(kind: type[Any]) -> None:
    error = kind("what happened; what to do")
    assert str(error) == "what happened; what to do"
    assert error.args == ("what happened; what to do",)
    assert error.result is None
    assert error.results == ()
    assert kind.__name__ in repr(error)


@pytest.mark.parametrize("again", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("kind", ALL)
def test_an_error_can_be_copied_and_pickled_whole(kind: type[Any], again: Any) -> None:
    error = kind("what happened")
    error.result = RESULT
    error.results = (RESULT,)
    other = again(error)
    assert type(other) is kind
    assert str(other) == str(error)
    assert other.result == RESULT
    assert other.results == (RESULT,)
    other.result = None
    assert error.result == RESULT


@pytest.mark.parametrize("code", [0, 250, 421, 450, 500, 550])
def test_the_code_of_a_reply_tells_whether_later_may_help(code: int) -> None:
    error = exceptions.MessageRefused("refused").with_reply(code, "grüße")
    assert error.smtp_code == code
    assert error.smtp_error == "grüße".encode()
    assert error.transient is (code < 500)
    assert pickle.loads(pickle.dumps(error)).smtp_code == code


@pytest.mark.parametrize(
    ("kind", "transient", "retry_safe"),
    [
        (exceptions.ConnectFailed, True, True),
        (exceptions.TLSFailed, True, True),
        (exceptions.AuthenticationFailed, False, True),
        (exceptions.ConnectionLost, True, True),
        (exceptions.DeliveryUnknown, True, False),
        (exceptions.PoolTimeout, True, True),
        (exceptions.PoolClosed, True, True),
        (exceptions.EnqueueFailed, True, False),
    ],
)
def test_what_a_queue_may_do_without_a_reply(
    kind: type[Any],
    transient: bool,  # noqa: FBT001
    retry_safe: bool,  # noqa: FBT001
) -> None:
    error = kind("x")
    assert (error.transient, error.retry_safe) == (transient, retry_safe)
    assert (error.smtp_code, error.smtp_error) == (0, b"")


def test_the_attributes_of_smtplib_are_there() -> None:
    sender = exceptions.SenderRefused("x")
    sender.sender = "shop@example.com"
    recipients = exceptions.RecipientsRefused("x")
    recipients.recipients = {"ann@example.com": (550, b"5.1.1 no")}
    assert pickle.loads(pickle.dumps(sender)).sender == "shop@example.com"
    assert pickle.loads(pickle.dumps(recipients)).recipients == recipients.recipients


def test_an_unknown_delivery_carries_what_repeats_it() -> None:
    error = exceptions.DeliveryUnknown("x")
    assert error.envelope is None
    assert error.idempotency_key is None
    error.envelopes = [ENVELOPE]
    other = pickle.loads(pickle.dumps(error))
    assert other.envelope == ENVELOPE
    assert other.idempotency_key == "k-1"


def test_a_result_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(RESULT)) == RESULT
