"""What several transactions of one message add up to, without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django_lettermint.smtp.attempt import Attempt

from django_lettermint.conf import backend_config
from django_lettermint.delivery import engine as delivery
from django_lettermint.delivery import result as verdict
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
from django_lettermint.smtp.replies import MAX_TEXT, Reply
from tests.sending import envelope

if TYPE_CHECKING:
    from django_lettermint.delivery.submission import Transaction

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN
CONFIG = backend_config({"api_token": "lm_x", "host": "127.0.0.1"}).relay
OFF = backend_config({"api_token": "lm_x", "host": "127.0.0.1", "idempotency": False}).relay  # fmt: skip


def transactions(*keys: str, config: Any = CONFIG) -> list[Transaction]:
    """Return one transaction for each recipient, named like its key."""
    return delivery.transactions(
        [envelope(f"{key}@x.test", idempotency_key=key) for key in keys], config
    )


def sent(transaction: Transaction) -> None:
    attempt = transaction.attempt()
    attempt.replies = dict.fromkeys(attempt.envelope.recipients, Reply(250, ("ok",)))
    attempt.phase, attempt.reply = Phase.DONE, Reply(250, ("queued",))
    transaction.record(attempt)


def refused(
    transaction: Transaction, phase: Phase = Phase.COMMIT, code: int = 550
) -> None:
    attempt = transaction.attempt()
    if phase is Phase.RCPT:
        attempt.replies = dict.fromkeys(attempt.envelope.recipients, Reply(code))
    attempt.refuse(phase, Reply(code, ("no",)))
    transaction.record(attempt)


def lost(transaction: Transaction, phase: Phase = Phase.COMMIT, times: int = 1) -> None:
    for _ in range(times):
        attempt = transaction.attempt()
        attempt.phase, attempt.failure = phase, ConnectionResetError("gone")
        transaction.record(attempt)


def unknown(transaction: Transaction) -> None:
    lost(transaction)
    transaction.fail(None)


def test_unknown_beats_sent_and_sent_beats_not_sent() -> None:
    for ends, outcome in [
        ((sent, refused), SENT),
        ((refused, sent), SENT),
        ((sent, unknown, refused), UNKNOWN),
        ((refused, refused), NOT_SENT),
        ((refused, unknown), UNKNOWN),
        ((sent, sent), SENT),
    ]:
        parts = transactions(*"abc"[: len(ends)])
        for end, part in zip(ends, parts, strict=True):
            end(part)
        assert verdict.result_of(parts).outcome is outcome
        assert (verdict.error_of(parts) is None) is (outcome is SENT)


def test_the_result_names_the_first_and_counts_all() -> None:
    parts = transactions("a", "b", "c")
    lost(parts[0], Phase.RCPT, times=2)
    for part in parts:
        sent(part)
    result = verdict.result_of(parts)
    assert (result.message_id, result.idempotency_key) == ("id", "a")
    assert result.attempts == 5
    assert (result.code, result.text, result.phase) == (250, "queued", Phase.DONE)
    assert [*result.recipients] == ["a@x.test", "b@x.test", "c@x.test"]


def test_the_result_of_a_repeat_that_was_confirmed_has_its_reply() -> None:
    (part,) = transactions("a")
    lost(part)
    sent(part)
    result = verdict.result_of([part])
    assert (result.outcome, result.code, result.phase) == (SENT, 250, Phase.DONE)


def test_the_time_runs_from_the_first_look_to_the_last_end() -> None:
    parts = transactions("a", "b")
    for part in parts:
        sent(part)
    assert verdict.result_of(parts).elapsed == 0.0
    parts = transactions("a", "b")
    for part in parts:
        part.deadline.start()
        sent(part)
    assert 0.0 < verdict.result_of(parts).elapsed < 5.0


def test_an_answer_to_a_repeat_does_not_decide_but_is_told() -> None:
    (part,) = transactions("a")
    lost(part)
    refused(part, code=554)
    result, error = verdict.result_of([part]), verdict.error_of([part])
    assert (result.outcome, result.code, result.text) == (UNKNOWN, None, "")
    assert isinstance(error, DeliveryUnknown)
    assert "(gone; a repeat was answered by 554 no)" in str(error)


def test_a_refusal_before_the_transaction_decides_as_well() -> None:
    (part,) = transactions("a")
    part.fail(AuthenticationFailed("no").with_reply(535, "5.7.8 wrong"))
    result = verdict.result_of([part])
    assert (result.code, result.text, result.attempts) == (535, "5.7.8 wrong", 0)


def test_no_connection_has_no_reply() -> None:
    (part,) = transactions("a")
    part.fail(ConnectFailed("timed out"))
    result = verdict.result_of([part])
    assert (result.code, result.text) == (None, "")


def test_an_unknown_delivery_names_the_envelopes_that_are() -> None:
    parts = transactions("a", "b", "c")
    for part, end in zip(parts, (unknown, sent, unknown), strict=True):
        end(part)
    error = verdict.error_of(parts)
    assert isinstance(error, DeliveryUnknown)
    assert [each.recipients for each in error.envelopes] == [("a@x.test",), ("c@x.test",)]  # fmt: skip
    assert error.repeatable
    assert "EmailBackend.repeat(error.envelopes)" in str(error)


def test_an_unknown_delivery_without_idempotency_says_to_look_first() -> None:
    (part,) = transactions("a", config=OFF)
    lost(part)
    assert part.done
    error = verdict.error_of([part])
    assert isinstance(error, DeliveryUnknown)
    assert not error.repeatable
    assert "look it up in the dashboard" in str(error)


@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        (Phase.MAIL, SenderRefused),
        (Phase.RCPT, RecipientsRefused),
        (Phase.DATA, MessageRefused),
        (Phase.CONTENT, MessageRefused),
        (Phase.COMMIT, MessageRefused),
    ],
)
@pytest.mark.parametrize("code", [450, 550])
def test_a_refusal_becomes_the_error_of_its_step(
    phase: Phase, kind: type[LettermintError], code: int
) -> None:
    (part,) = transactions("a")
    refused(part, phase, code)
    error = verdict.error_of([part])
    assert type(error) is kind
    assert error.transient is (code < 500)
    assert error.retry_safe
    assert error.smtp_code == code
    assert verdict.result_of([part]).phase is phase


@pytest.mark.parametrize(
    ("code", "phase", "said"),
    [(550, Phase.COMMIT, True), (450, Phase.COMMIT, False), (550, Phase.RCPT, False)],
)
def test_a_key_of_the_callers_may_explain_a_refusal(
    code: int, phase: Phase, said: Any
) -> None:
    (part,) = transactions("a")
    refused(part, phase, code)
    assert ("key is your own" in str(verdict.error_of([part], key_given=True))) is said
    assert "key is your own" not in str(verdict.error_of([part]))


@pytest.mark.parametrize(
    ("error", "phase"),
    [
        (ConnectFailed("x"), Phase.CONNECT),
        (TLSFailed("x"), Phase.TLS),
        (AuthenticationFailed("x"), Phase.AUTH),
        (PoolTimeout("x"), Phase.POOL),
        (PoolClosed("x"), Phase.POOL),
        (ConnectionLost("x"), Phase.CONNECT),
        (LettermintInvalidMessage("x"), Phase.MESSAGE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_all_is_copied_for_each_and_tells_the_step(
    error: Exception, phase: Phase
) -> None:
    (part,) = transactions("a")
    part.fail(error)
    copied = verdict.error_of([part])
    assert type(copied) is type(error)
    assert copied is not error
    assert str(copied) == "x"
    assert verdict.result_of([part]).phase is phase
    assert verdict.phase_of(error) is phase


def test_a_connection_that_failed_at_a_later_step_names_it() -> None:
    error = ConnectFailed("x")
    error.phase = Phase.AUTH
    assert verdict.phase_of(error) is Phase.AUTH


def test_a_loss_tells_where_and_how_often() -> None:
    (part,) = transactions("a")
    lost(part, Phase.RCPT, times=3)
    part.fail(None)
    error = verdict.error_of([part])
    assert isinstance(error, ConnectionLost)
    assert str(error) == (
        "the connection failed at RCPT (gone; attempts: 3): the message was not sent; "
        "send it again"
    )
    assert verdict.result_of([part]).phase is Phase.RCPT


def test_a_message_that_was_never_begun_was_interrupted() -> None:
    (part,) = transactions("a")
    part.fail(None)
    error = verdict.error_of([part])
    assert isinstance(error, ConnectionLost)
    assert "interrupted before" in str(error)
    assert verdict.result_of([part]).phase is Phase.POOL
    part.deadline.start()
    assert verdict.result_of([part]).phase is Phase.CONNECT


def test_a_message_that_does_not_fit_keeps_its_own_error() -> None:
    (part,) = transactions("a")
    attempt = part.attempt()
    attempt.failure = LettermintInvalidMessage("too big")
    part.record(attempt)
    assert part.done
    assert verdict.error_of([part]) is attempt.failure


def test_a_reason_is_bounded() -> None:
    (part,) = transactions("a")
    attempt = part.attempt()
    attempt.failure = OSError("x" * 9999)
    part.record(attempt)
    part.fail(None)
    assert len(str(verdict.error_of([part]))) < MAX_TEXT + 200


@pytest.mark.parametrize(
    ("reply", "status"),
    [(Reply(250), "queued"), (Reply(251), "queued"), (Reply(450), "failed"),
     (Reply(550), "rejected"), (Reply(501), "invalid"), (Reply(553), "invalid")],
    ids=str,
)  # fmt: skip
def test_the_reply_to_rcpt_becomes_a_status(reply: Reply, status: str) -> None:
    (part,) = delivery.transactions([envelope("a@x.test", "b@x.test")], CONFIG)
    attempt = part.attempt()
    attempt.replies = {"a@x.test": reply, "b@x.test": Reply(250)}
    attempt.phase, attempt.reply = Phase.DONE, Reply(250)
    part.record(attempt)
    found = verdict.result_of([part]).recipients["a@x.test"]
    assert (found.status, found.code) == (status, reply.code)


def test_a_recipient_without_an_answer_of_its_own_is_queued_with_the_others() -> None:
    (part,) = transactions("a")
    attempt = part.attempt()
    attempt.phase, attempt.reply = Phase.DONE, Reply(250)
    part.record(attempt)
    assert verdict.result_of([part]).recipients["a@x.test"].status == "queued"


def test_recipients_of_a_repeat_are_all_of_the_first_try() -> None:
    (part,) = delivery.transactions([envelope("a@x.test", "b@x.test")], CONFIG)
    first = Attempt(envelope=part.envelope, repeatable=True)
    first.replies = {"a@x.test": Reply(550)}
    first.phase, first.failure = Phase.COMMIT, OSError("gone")
    object.__setattr__(part.envelope, "idempotency_key", "k")
    part.record(first)
    assert part.envelope.recipients == ("b@x.test",)
    assert verdict.recipients_of(part) == ("a@x.test", "b@x.test")
