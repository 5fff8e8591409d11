"""One message to a relay that fails: how it ends, and what is tried again."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.exceptions import (
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    LettermintError,
    MessageRefused,
    RecipientsRefused,
    SenderRefused,
)
from django_lettermint.results import Outcome, Phase
from tests.faultserver import (
    FEATURES,
    Answer,
    FaultServer,
    On,
    drop,
    hang,
    raw,
    reply,
    trickle,
)
from tests.sending import (
    SHORT,
    Heard,
    backend,
    cases,
    interruptible,
    listening,
    mail,
    mails,
    result,
    spoken,
    status,
    strike_and_wait,
)

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from tests.faults import Action

BOB = "bob@example.org"
SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN
ONCE = {BOB: 1}


def send(
    server: FaultServer, message: EmailMessage | None = None, **options: Any
) -> tuple[EmailMessage, Heard]:
    """Send a message that goes out."""
    message = message or mail()
    with listening() as heard:
        assert backend(server, **options).send_messages([message]) == 1
    assert [each[0] for each in heard.sent] == [message]
    assert heard.failed == []
    assert result(message).outcome is SENT
    return message, heard


def fail(
    server: FaultServer, message: EmailMessage | None = None, **options: Any
) -> tuple[EmailMessage, Any]:
    """Send a message that does not, or may not, go out; return its error."""
    message = message or mail()
    with listening() as heard, pytest.raises(LettermintError) as raised:
        backend(server, **options).send_messages([message])
    assert heard.sent == []
    (failed,) = heard.failed
    assert failed == (message, result(message), raised.value)
    assert raised.value.result is result(message)
    assert raised.value.results == (result(message),)
    return message, raised.value


def statuses(message: EmailMessage) -> dict[str, str]:
    return {who: each.status for who, each in status(message).recipients.items()}


# -- Refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", [451, 550])
@pytest.mark.parametrize(
    ("phase", "kind", "words"),
    [
        ("mail", SenderRefused, "refused the message at MAIL"),
        ("rcpt", RecipientsRefused, "refused the recipient at RCPT"),
        ("data", MessageRefused, "refused the message at DATA"),
        ("dot", MessageRefused, "refused the message at its end"),
    ],
)
def test_a_refusal_is_raised_and_not_tried_again(
    phase: Any, kind: type[LettermintError], words: str, code: int
) -> None:
    with FaultServer([On(phase, times=1, do=reply(code, "no thanks"))]) as server:
        message, error = fail(server)
        assert isinstance(error, kind)
        assert words in str(error)
        assert (error.smtp_code, error.smtp_error) == (code, b"no thanks")
        assert error.transient is (code < 500)
        assert (result(message).code, result(message).text) == (code, "no thanks")
        assert result(message).attempts == 1
        assert statuses(message) == {BOB: "failed" if code < 500 else "rejected"}
        assert spoken(server).count("MAIL") == 1

        send(server)
        assert server.delivered == ONCE
        assert server.connections == 1
        assert server.violations == []


# -- Lost before the end of the message ------------------------------------------------

LOSSES = cases(
    fin=drop(),
    rst=drop(rst=True),
    closing=reply(421, "4.3.2 bye", close=True),
    idle=reply(451, "4.4.2 idle", close=True),
    garbage=raw(b"what?\r\n"),
    hang=hang(),
)


@pytest.mark.parametrize("do", LOSSES)
def test_a_fresh_connection_that_is_lost_is_replaced_after_a_pause(do: Action) -> None:
    with FaultServer([On("rcpt", times=1, do=do)]) as server:
        message, _ = send(server, timeout=SHORT)
        assert server.delivered == ONCE
        assert server.connections == 2
        assert result(message).attempts == 2
        assert not result(message).connection_reused
        [stats] = pool.get_stats()
        assert stats["retries"] == 1
        assert server.violations == []


@pytest.mark.parametrize("do", LOSSES)
def test_a_used_connection_that_is_lost_is_replaced_without_a_retry(do: Action) -> None:
    with FaultServer([On("rcpt", message=2, do=do)]) as server:
        send(server, mail("1@x.test"), timeout=SHORT, retries=0)
        message, _ = send(server, mail("2@x.test"), timeout=SHORT, retries=0)
        assert server.delivered == {"1@x.test": 1, "2@x.test": 1}
        assert server.connections == 2
        assert result(message).attempts == 2


def test_idle_connections_that_are_lost_together_cost_one_try() -> None:
    with FaultServer() as server:
        sender = backend(server, retries=0, pool={"max_size": 3})
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(pool.lease(sender.config, seconds=5))
        # There is no sign of it until they are used.
        server.script += [On("mail", connection=n, do=drop()) for n in (1, 2, 3)]
        assert sender.send_messages([mail()]) == 1
        assert server.delivered == ONCE
        assert server.connections == 4
        assert spoken(server).count("MAIL") == 2


# -- Lost after it ---------------------------------------------------------------------

ENDS = cases(
    fin=drop(),
    rst=drop(rst=True),
    hang=hang(),
    cut_off=raw(b"250-queued\r\n", close=True),
    no_reply=raw(b"ok\r\n", close=True),
    go_ahead=reply(354, close=True),
)


def taken(do: Action) -> Action:
    """Deliver the message, whatever the answer is."""
    return lambda answer: Answer(answer.code, do(answer).play)


@pytest.mark.parametrize("accepted", cases(taken=True, not_taken=False))
@pytest.mark.parametrize("do", ENDS)
def test_an_unconfirmed_message_is_repeated_byte_for_byte_under_its_key(
    do: Action, accepted: Any
) -> None:
    script = [On("dot", times=1, do=taken(do) if accepted else do)]
    with FaultServer(script, idempotency=True) as server:
        message, _ = send(server, final_reply_timeout=SHORT)
        assert server.delivered == ONCE
        assert server.replays == accepted
        assert server.connections == 2
        assert result(message).attempts == 2
        assert statuses(message) == {BOB: "queued"}
        assert server.deliveries[0].key == result(message).idempotency_key
        assert server.violations == []
        first, second = (
            octets.partition(b"MAIL FROM")[2] for octets in server.received.values()
        )
        assert first == second


@pytest.mark.parametrize("do", ENDS)
def test_without_idempotency_an_unconfirmed_message_is_unknown_and_not_repeated(
    do: Action,
) -> None:
    with FaultServer([On("dot", times=1, do=taken(do))]) as server:
        message, error = fail(server, idempotency=False, final_reply_timeout=SHORT)
        assert isinstance(error, DeliveryUnknown)
        assert not error.retry_safe
        assert "look it up in the dashboard" in str(error)
        assert result(message).outcome is UNKNOWN
        assert result(message).phase is Phase.COMMIT
        assert statuses(message) == {BOB: "unknown"}
        assert spoken(server).count("MAIL") == 1
        assert server.delivered == ONCE


@pytest.mark.parametrize("idempotency", [False, True])
def test_the_callers_key_is_written_but_only_relied_on_with_idempotency(
    *, idempotency: bool
) -> None:
    script = [On("dot", times=2, do=drop(deliver=True))]
    message = mail()
    message.idempotency_key = "order-7"  # type: ignore[attr-defined]
    with FaultServer(script, idempotency=idempotency) as server:
        if idempotency:
            send(server, message)
        else:
            assert fail(server, message)[1].idempotency_key == "order-7"
        assert [each.key for each in server.deliveries] == ["order-7"]
        assert server.connections == (3 if idempotency else 1)


# -- Interrupts ------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["banner", "auth", "mail", "rcpt", "data", "dot"])
def test_an_interrupt_propagates_and_the_message_ends_with_what_is_certain(
    phase: Any,
) -> None:
    unknown = phase == "dot"
    message = mail()
    with FaultServer() as server, interruptible() as strike:
        server.script.append(On(phase, times=1, do=strike_and_wait(strike)))
        with listening() as heard, pytest.raises(KeyboardInterrupt):
            backend(server).send_messages([message])
        assert server.wait_for(lambda: server.open_connections == 0)
        ((failed, found, error),) = heard.failed
        assert (failed, found) == (message, result(message))
        assert heard.sent == []
        assert found.outcome is (UNKNOWN if unknown else NOT_SENT)
        assert found.attempts == (phase not in ("banner", "auth"))
        assert statuses(message) == {BOB: "unknown" if unknown else "failed"}
        assert isinstance(error, DeliveryUnknown if unknown else ConnectionLost)
        assert "interrupted" in str(error)
        assert server.delivered == {}

        send(server)
        assert server.delivered == ONCE


# -- Many recipients -------------------------------------------------------------------


def test_recipients_that_are_too_many_at_once_get_transactions_of_their_own() -> None:
    recipients = [f"{number}@x.test" for number in range(1, 6)]
    too_many = reply(452, "4.5.3 too many")
    script = [
        On("rcpt", message=1, match="[345]@", do=too_many),
        On("rcpt", message=2, match="5@", do=too_many),
    ]
    with FaultServer(script, idempotency=True) as server:
        message, _ = send(server, mail(*recipients))
        assert [each.recipients for each in server.deliveries] == [
            ("1@x.test", "2@x.test"),
            ("3@x.test", "4@x.test"),
            ("5@x.test",),
        ]
        key = result(message).idempotency_key
        assert server.deliveries[0].key == key
        assert len({each.key for each in server.deliveries}) == 3
        assert statuses(message) == dict.fromkeys(recipients, "queued")
        assert server.connections == 1
        assert server.violations == []


def test_more_than_fifty_recipients_are_divided() -> None:
    recipients = [f"{number}@x.test" for number in range(120)]
    with FaultServer(idempotency=True) as server:
        message, _ = send(server, mail(*recipients))
        assert [len(each.recipients) for each in server.deliveries] == [50, 50, 20]
        assert server.deliveries[0].key == result(message).idempotency_key
        assert len({each.key for each in server.deliveries}) == 3
        # The same but for the key, which is the first line.
        texts = {each.content.partition(b"\r\n")[2] for each in server.deliveries}
        assert len(texts) == 1
        assert server.delivered == dict.fromkeys(recipients, 1)
        assert statuses(message) == dict.fromkeys(recipients, "queued")
        assert server.connections == 1


# -- Time ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "kind"),
    [("banner", ConnectFailed), ("mail", ConnectionLost), ("dot", DeliveryUnknown)],
)
def test_the_deadline_limits_a_server_that_sends_octet_by_octet(
    phase: Any, kind: type[LettermintError]
) -> None:
    slow = trickle(b"250-slow\r\n" * 1000, 0.05)
    with FaultServer() as server:
        if phase != "banner":
            send(server)  # a slow machine may need the time for TLS
        server.script.append(On(phase, do=slow))
        limits: Any = {"timeout": 60, "final_reply_timeout": 60, "deadline": 2 * SHORT}
        _, error = fail(server, **limits, retries=9)
        assert isinstance(error, kind)
        assert server.wait_for(lambda: server.open_connections == 0)


def test_a_time_that_connecting_used_up_leaves_that_as_the_reason() -> None:
    with FaultServer([On("banner", do=hang())]) as server:
        message, error = fail(server, deadline=SHORT, retries=9)
        assert isinstance(error, ConnectFailed)
        assert "greeting" in str(error)
        assert result(message).attempts == 1


# -- Connections -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "options"),
    [(FEATURES, {"pool": {"max_messages": 2}}), ((*FEATURES, "LIMITS MAILMAX=2"), {})],
    ids=["the option", "the relay"],
)
def test_a_connection_carries_no_more_messages_than_it_may(
    features: Any, options: dict[str, Any]
) -> None:
    with FaultServer(features=features) as server:
        send(server, **options)
        assert backend(server, **options).send_messages(mails(5)) == 5
        assert [each.connection for each in server.deliveries] == [1, 1, 2, 2, 3, 3]
