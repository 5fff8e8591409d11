"""What the submissions of one message add up to, without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from django_lettermint.delivery import (
    Submission,
    build_error,
    build_result,
)
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    LettermintError,
    LettermintInvalidMessage,
    MessageRefused,
    PoolClosed,
    PoolTimeout,
    RecipientsRefused,
    SenderRefused,
    TLSFailed,
)
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import MAX_TEXT, Reply, ServerClosing
from tests.delivery.ends import failed, lost, one, refused, sent, several

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


def unknown(part: Submission) -> None:
    lost(part)
    part.fail(None)


def error_of(part: Submission, **keywords: bool) -> Any:
    return build_error([part], **keywords)


def statuses(part: Submission) -> list[str]:
    return [each.status for each in build_result([part]).recipients.values()]


# -- Several submissions ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ((sent, unknown, refused), UNKNOWN),
        ((refused, sent), SENT),
        ((refused, refused), NOT_SENT),
    ],
)
def test_unknown_beats_sent_and_sent_beats_not_sent(
    ends: tuple[Callable[[Submission], object], ...], outcome: Outcome
) -> None:
    parts = several(*"abc"[: len(ends)])
    for end, part in zip(ends, parts, strict=True):
        end(part)
    assert build_result(parts).outcome is outcome
    assert (build_error(parts) is None) is (outcome is SENT)


def test_the_result_names_the_first_and_adds_up_all() -> None:
    first, second = parts = several("a", "b")
    lost(first, Phase.RCPT)
    sent(first)
    sent(second)
    assert build_result([second]).elapsed == 0.0
    first.deadline.started, first.ended = 2.0, 5.0
    second.deadline.started, second.ended = 1.0, 4.0
    result = build_result(parts)
    assert (result.message_id, result.idempotency_key) == ("id", "a")
    assert (result.code, result.text, result.phase) == (250, "queued", Phase.DONE)
    assert [*result.recipients] == ["a@x.test", "b@x.test"]
    assert (result.attempts, result.elapsed) == (3, 4.0)


# -- Unknown ---------------------------------------------------------------------------


def test_a_confirmed_repeat_has_its_reply_and_a_refused_one_decides_nothing() -> None:
    first, second = several("a", "b")
    for part in (first, second):
        lost(part)
    sent(first)
    refused(second, code=554)
    result = build_result([first])
    assert (result.outcome, result.code, result.phase) == (SENT, 250, Phase.DONE)
    result = build_result([second])
    assert (result.outcome, result.code, result.phase) == (UNKNOWN, None, Phase.COMMIT)
    assert statuses(second) == ["unknown"]
    assert "(gone; a repeat was answered by 554 no)" in str(error_of(second))


@pytest.mark.parametrize(
    ("idempotency", "advice"),
    [(True, "`EmailBackend.repeat()` of its envelopes"), (False, "look it up")],
)
def test_an_unknown_delivery_names_its_envelopes_and_whether_a_repeat_is_safe(
    advice: str, *, idempotency: bool
) -> None:
    parts = several("a", "b", "c", idempotency=idempotency)
    unknown(parts[0])
    sent(parts[1])
    unknown(parts[2])
    error = build_error(parts)
    assert isinstance(error, DeliveryUnknown)
    names = [each.recipients for each in error.envelopes]
    assert names == [("a@x.test",), ("c@x.test",)]
    assert error.repeatable is idempotency
    assert "came back (gone): " in str(error)
    assert advice in str(error)


# -- Refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", [450, 550])
@pytest.mark.parametrize(
    ("phase", "kind", "what"),
    [
        (Phase.MAIL, SenderRefused, "the message at MAIL"),
        (Phase.RCPT, RecipientsRefused, "the recipient at RCPT"),
        (Phase.DATA, MessageRefused, "the message at DATA"),
        (Phase.CONTENT, MessageRefused, "the message at DATA, before its end"),
        (Phase.COMMIT, MessageRefused, "the message at its end"),
    ],
)
def test_a_refusal_becomes_the_error_of_its_step(
    phase: Phase, kind: type[Any], what: str, code: int
) -> None:
    part = one()
    refused(part, phase, code)
    error = error_of(part)
    assert type(error) is kind
    assert (error.transient, error.retry_safe) == (code < 500, True)
    assert error.smtp_code == code
    assert str(error).startswith(f"the relay refused {what}: {code} no; ")
    assert build_result([part]).phase is phase


def test_the_advice_for_a_refused_message_depends_on_whose_key_it_has() -> None:
    part = one()
    refused(part)
    assert "key is your own" not in str(error_of(part))
    assert "key is your own" in str(error_of(part, has_caller_key=True))


def test_refusals_of_the_sender_and_of_all_recipients_name_them() -> None:
    part = one()
    refused(part, Phase.MAIL)
    assert error_of(part).sender == "ann@example.org"
    part = one("a@x.test", "b@x.test")
    refused(part, Phase.RCPT)
    assert "refused all 2 recipients at RCPT" in str(error_of(part))
    assert error_of(part).recipients == {
        "a@x.test": (550, b""),
        "b@x.test": (550, b""),
    }


# -- Lost, or never begun --------------------------------------------------------------


def at_step(error: ConnectFailed, phase: Phase) -> ConnectFailed:
    error.phase = phase
    return error


@pytest.mark.parametrize(
    ("error", "phase"),
    [
        (ConnectFailed("x"), Phase.CONNECT),
        (at_step(ConnectFailed("x"), Phase.AUTH), Phase.AUTH),
        (TLSFailed("x"), Phase.TLS),
        (AuthenticationFailed("x").with_reply(535, "5.7.8 wrong"), Phase.AUTH),
        (PoolTimeout("x"), Phase.POOL),
        (PoolClosed("x"), Phase.POOL),
        (ConnectionLost("x"), Phase.CONNECT),
        (LettermintInvalidMessage("x"), Phase.MESSAGE),
    ],
)
def test_an_error_of_all_is_copied_for_each_and_has_a_step_and_a_reply(
    error: Exception, phase: Phase
) -> None:
    part = one()
    part.fail(error)
    copied = error_of(part)
    assert type(copied) is type(error)
    assert copied is not error
    assert str(copied) == str(error)
    result = build_result([part])
    found = (result.code, result.text)
    replied = isinstance(error, LettermintError) and error.smtp_code
    assert found == ((535, "5.7.8 wrong") if replied else (None, ""))
    assert (result.phase, result.attempts) == (phase, 0)
    assert result.recipients["a@x.test"].code == result.code


@pytest.mark.parametrize(
    ("failure", "timed_out"),
    [(ConnectionResetError("gone"), False), (TimeoutError("gone"), True)],
)
def test_a_loss_says_where_and_how_often(failure: OSError, *, timed_out: bool) -> None:
    part = one()
    for _ in range(3):
        failed(part, Phase.RCPT, failure)
    part.fail(None)
    error = error_of(part)
    assert isinstance(error, ConnectionLost)
    assert error.timed_out is timed_out
    assert str(error) == (
        "the connection failed at RCPT (gone; attempts: 3): the message was not sent; "
        "send it again"
    )
    assert build_result([part]).phase is Phase.RCPT
    assert statuses(part) == ["failed"]


def test_the_reason_of_a_loss_is_limited_in_length() -> None:
    part = one()
    failed(part, Phase.MAIL, OSError("x" * 9999))
    part.fail(None)
    assert len(str(error_of(part))) < MAX_TEXT + 200


def test_code_and_text_of_a_server_that_closes_are_kept() -> None:
    part = one()
    failed(part, Phase.MAIL, ServerClosing(Reply(421, ("4.7.0 try again later",))))
    result, error = build_result([part]), error_of(part)
    assert (result.code, result.text) == (421, "4.7.0 try again later")
    assert result.recipients["a@x.test"].code == 421
    assert isinstance(error, ConnectionLost)
    assert (error.smtp_code, error.smtp_error) == (421, b"4.7.0 try again later")
    assert error.transient


def test_a_message_that_was_never_begun_was_interrupted() -> None:
    part = one()
    part.fail(None)
    assert isinstance(error_of(part), ConnectionLost)
    assert "interrupted before" in str(error_of(part))
    assert build_result([part]).phase is Phase.POOL
    part.deadline.seconds_left()
    assert build_result([part]).phase is Phase.CONNECT


def test_a_message_that_does_not_fit_keeps_its_own_error() -> None:
    part = one()
    failure = LettermintInvalidMessage("too big")
    failed(part, Phase.MAIL, failure)
    assert part.done
    assert error_of(part) is failure


# -- Recipients ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (251, "queued"),
        (499, "failed"),
        (500, "rejected"),
        (550, "rejected"),
        (501, "invalid"),
        (553, "invalid"),
    ],
)
def test_the_reply_to_rcpt_becomes_a_status(code: int, status: str) -> None:
    part = one("a@x.test", "b@x.test")
    sent(part, a=Reply(code))
    found = build_result([part]).recipients["a@x.test"]
    assert (found.status, found.code) == (status, code)


def test_a_recipient_without_an_answer_is_queued_with_the_others() -> None:
    part = one()
    transaction = part.begin()
    transaction.phase, transaction.reply = Phase.DONE, Reply(250)
    part.record(transaction)
    assert statuses(part) == ["queued"]


def test_a_reply_about_the_sender_marks_no_recipient_as_invalid() -> None:
    part = one()
    refused(part, Phase.MAIL, 553)
    assert statuses(part) == ["rejected"]


def test_a_server_that_closes_the_session_has_queued_nothing() -> None:
    part = one()
    failed(part, Phase.MAIL, ServerClosing(Reply(221, ("Bye",))))
    assert statuses(part) == ["failed"]


def test_recipients_of_a_repeat_are_all_of_the_first_try() -> None:
    part = one("a@x.test", "b@x.test")
    lost(part, a=Reply(550))
    assert part.envelope.recipients == ("b@x.test",)
    assert part.recipients == ("a@x.test", "b@x.test")
    sent(part)
    assert statuses(part) == ["rejected", "queued"]


def test_a_recipient_refused_on_a_repeat_may_have_got_the_first_try() -> None:
    part = one("a@x.test", "b@x.test")
    lost(part)
    sent(part, b=Reply(550, ("5.1.1 no",)))
    assert statuses(part) == ["queued", "unknown"]
    assert build_result([part]).recipients["b@x.test"].text == "550 5.1.1 no"
