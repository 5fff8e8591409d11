"""How each failure ends, what is tried again, and that nobody ever gets a message twice."""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import delivery, pool, transaction
from django_lettermint.conf import backend_config
from django_lettermint.exceptions import (
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    LettermintError,
    LettermintInvalidMessage,
    MessageRefused,
    RecipientsRefused,
    SenderRefused,
    TLSFailed,
)
from django_lettermint.results import Outcome, Phase
from tests.faultserver import (
    FEATURES,
    TOKEN,
    Answer,
    FaultServer,
    On,
    accept_then,
    drop,
    endless,
    hang,
    raw,
    reply,
    stall,
    trickle,
)
from tests.sending import (
    SHORT,
    Heard,
    backend,
    cases,
    envelope,
    interruptible,
    listening,
    mail,
    mails,
    relay,
    result,
    session,
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
BIG = "x" * 70 + "\n"


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


def retries(server: FaultServer) -> object:
    (stats,) = (each for each in pool.get_stats() if each["port"] == server.port)
    return stats["retries"]


# -- refused, and in step: never tried again -----------------------------------------------


@pytest.mark.parametrize("code", [451, 550])
@pytest.mark.parametrize(
    ("phase", "kind", "words"),
    [
        ("mail", SenderRefused, "refused the sender at MAIL"),
        ("rcpt", RecipientsRefused, "refused the recipient at RCPT"),
        ("data", MessageRefused, "refused the message at DATA"),
        ("dot", MessageRefused, "refused the message at its end"),
    ],
)
def test_a_refusal_is_raised_and_not_tried_again(
    phase: Any, kind: type[LettermintError], words: str, code: int
) -> None:
    with FaultServer([On(phase, times=1, do=reply(code, "no thanks"))]) as server:
        sender = backend(server)
        message = mail()
        with pytest.raises(kind, match=words) as raised:
            sender.send_messages([message])
        error = raised.value
        assert (error.smtp_code, error.smtp_error) == (code, b"no thanks")
        assert error.transient is (code < 500)
        assert error.retry_safe
        assert result(message).outcome is NOT_SENT
        assert (result(message).code, result(message).text) == (code, "no thanks")
        assert result(message).attempts == 1
        assert statuses(message) == {BOB: "failed" if code < 500 else "rejected"}
        assert server.deliveries == []
        assert spoken(server).count("MAIL") == 1

        assert sender.send_messages([mail()]) == 1
        assert server.delivered == ONCE
        assert server.connections == 1
        assert server.violations == []


def test_each_refusal_says_about_whom_it_is() -> None:
    with FaultServer([On("mail", do=reply(550))]) as server:
        assert fail(server)[1].sender == "ann@example.org"
    with FaultServer([On("rcpt", do=reply(550, "5.1.1 who?"))]) as server:
        assert fail(server)[1].recipients == {BOB: (550, b"5.1.1 who?")}


@pytest.mark.parametrize("code", [450, 550])
def test_a_recipient_that_is_refused_among_others_raises_nothing(code: int) -> None:
    script = [On("rcpt", match="bob@", do=reply(code, "x.1.1 no"))]
    with FaultServer(script) as server:
        message, _ = send(server, mail("al@x.test", BOB, "cid@x.test"))
        assert server.delivered == {"al@x.test": 1, "cid@x.test": 1}
        assert statuses(message) == {
            "al@x.test": "queued",
            BOB: "failed" if code < 500 else "rejected",
            "cid@x.test": "queued",
        }
        assert result(message).recipients[BOB].code == code
        assert spoken(server).count("MAIL") == 1


@pytest.mark.parametrize("chunking", [False, True])
def test_refusals_of_all_recipients_hold_though_the_server_hangs_up_then(
    chunking: bool,  # noqa: FBT001
) -> None:
    script = [On("rcpt", do=reply(550)), On("data", do=drop()), On("bdat", do=drop())]
    with FaultServer(script, features=[*FEATURES, "CHUNKING"]) as server:
        message, error = fail(server, mail("1@x.test", "2@x.test"), chunking=chunking)
        assert isinstance(error, RecipientsRefused)
        assert not error.transient
        assert {each.code for each in result(message).recipients.values()} == {550}
        assert server.connections == 1


@pytest.mark.parametrize(
    ("codes", "transient"),
    [((550, 550), False), ((450, 550), True), ((550, 450), True), ((451, 452), True)],
)
def test_recipients_that_are_all_refused_fail_for_now_if_one_does(
    codes: tuple[int, int],
    transient: bool,  # noqa: FBT001
) -> None:
    script = [
        On("rcpt", match="1@", do=reply(codes[0])),
        On("rcpt", match="2@", do=reply(codes[1])),
    ]
    with FaultServer(script) as server:
        message, error = fail(server, mail("1@x.test", "2@x.test"))
        assert isinstance(error, RecipientsRefused)
        assert error.transient is transient
        assert [each.code for each in result(message).recipients.values()] == [*codes]
        assert server.connections == 1
        assert server.deliveries == []


@pytest.mark.parametrize("code", [501, 553])
def test_an_address_that_the_relay_finds_invalid_is_marked_so(code: int) -> None:
    with FaultServer([On("rcpt", match="bob@", do=reply(code))]) as server:
        message, _ = send(server, mail("al@x.test", BOB))
        assert statuses(message) == {"al@x.test": "queued", BOB: "invalid"}


def test_a_sender_that_the_relay_finds_invalid_marks_no_recipient_so() -> None:
    with FaultServer([On("mail", do=reply(553))]) as server:
        assert statuses(fail(server)[0]) == {BOB: "rejected"}


@pytest.mark.parametrize(
    ("code", "text", "transient"), [(550, "4.2.1 odd", False), (450, "5.1.1 odd", True)]
)
def test_the_first_digit_beats_an_enhanced_code_that_disagrees(
    code: int,
    text: str,
    transient: bool,  # noqa: FBT001
) -> None:
    with FaultServer([On("rcpt", do=reply(code, text))]) as server:
        message, error = fail(server)
        assert error.transient is transient
        assert result(message).recipients[BOB].enhanced_code is None


def test_a_text_of_the_relay_is_bounded_and_printable_everywhere() -> None:
    nasty = "\x1b[2J\x00" + "\udcff" + "y" * 4096
    with FaultServer([On("dot", do=reply(554, nasty))]) as server:
        message, error = fail(server)
        for text in (str(error), result(message).text, error.smtp_error.decode()):
            assert text.isprintable()
            assert len(text) < 700


def test_a_refusal_under_the_callers_own_key_may_mean_that_it_was_sent_before() -> None:
    with FaultServer([On("dot", do=reply(554, "conflict"))]) as server:
        message = mail()
        message.idempotency_key = "order-7"  # type: ignore[attr-defined]
        assert "key is your own: if it was used before" in str(fail(server, message)[1])
        assert "key is your own" not in str(fail(server)[1])
    with FaultServer([On("dot", do=reply(454, "conflict"))]) as server:
        assert "key is your own" not in str(fail(server, message)[1])


# -- lost before the point of no return: tried again ---------------------------------------


LOSSES = cases(
    fin=drop(),
    rst=drop(rst=True),
    goodbye=reply(421, "4.3.2 bye", close=True),
    idle=reply(451, "4.4.2 idle", close=True),
    garbage=raw(b"what?\r\n"),
    hang=hang(),
)


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
@pytest.mark.parametrize("do", LOSSES)
def test_a_loss_on_a_fresh_connection_is_tried_again(phase: Any, do: Action) -> None:
    with FaultServer([On(phase, times=1, do=do)]) as server:
        message, _ = send(server, timeout=SHORT)
        assert server.delivered == ONCE
        assert server.connections == 2
        assert result(message).attempts == 2
        assert not result(message).connection_reused
        assert retries(server) == 1
        assert server.violations == []


@pytest.mark.parametrize("do", [drop(), drop(rst=True), reply(421, close=True)], ids=["fin", "rst", "bye"])  # fmt: skip
def test_a_loss_within_the_content_is_tried_again(do: Action) -> None:
    script = [On("body", times=1, after_bytes=50_000, do=do)]
    with FaultServer(script, rcvbuf=4096) as server:
        message = mail()
        message.body = BIG * 30_000
        send(server, message, timeout=5)
        assert server.delivered == ONCE
        assert server.connections == 2


def test_a_server_that_stops_reading_fails_after_the_timeout() -> None:
    with FaultServer([On("body", do=hang())], rcvbuf=4096) as server:
        message = mail()
        message.body = BIG * 100_000
        began = time.monotonic()
        _, error = fail(server, message, timeout=SHORT, retries=1)
        assert time.monotonic() - began < 15
        assert isinstance(error, ConnectionLost)
        assert result(message).phase is Phase.CONTENT
        assert server.connections == 2


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
def test_losses_on_fresh_connections_are_tried_so_often_and_no_more(phase: Any) -> None:
    with FaultServer([On(phase, do=drop())]) as server:
        message, error = fail(server, retries=2)
        assert isinstance(error, ConnectionLost)
        assert error.transient
        assert f"failed at {phase.upper()}" in str(error)
        assert "attempts: 3)" in str(error)
        assert server.connections == 3
        assert server.delivered == {}
        assert result(message).phase is Phase(phase)
        assert result(message).attempts == 3
        assert statuses(message) == {BOB: "failed"}


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
@pytest.mark.parametrize("do", LOSSES)
def test_a_loss_on_a_used_connection_is_nobodys_failure(phase: Any, do: Action) -> None:
    script = [On(phase, message=2, do=do)]
    with FaultServer(script) as server:
        send(server, mail("1@x.test"), timeout=SHORT, retries=0)
        message, _ = send(server, mail("2@x.test"), timeout=SHORT, retries=0)
        assert server.delivered == {"1@x.test": 1, "2@x.test": 1}
        assert server.connections == 2
        assert result(message).attempts == 2


def test_all_connections_that_died_together_are_one_try() -> None:
    with FaultServer() as server:
        sender = backend(server, retries=0, pool={"max_size": 3})
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(pool.lease(sender.config, seconds=5))
        # No sign of it until they are used.
        server.script.append(On("mail", connection=1, do=drop()))
        server.script.append(On("mail", connection=2, do=drop()))
        server.script.append(On("mail", connection=3, do=drop()))
        assert sender.send_messages([mail()]) == 1
        assert server.delivered == ONCE
        assert server.connections == 4
        assert spoken(server).count("MAIL") == 2


def test_a_connection_that_the_server_closed_while_idle_is_replaced_unseen() -> None:
    with FaultServer() as server:
        send(server, retries=0)
        server.act_on_all(reply(421, "4.4.2 idle", close=True))
        message, _ = send(server, retries=0)
        assert server.delivered == {BOB: 2}
        assert result(message).attempts == 1
        assert server.connections == 2


def test_a_goodbye_after_some_recipients_sends_to_nobody_and_repeats_them_all() -> None:
    script = [On("rcpt", connection=1, match="2@", do=reply(421, "bye", close=True))]
    with FaultServer(script, features=["8BITMIME"]) as server:
        send(server, mail("1@x.test", "2@x.test", "3@x.test"))
        assert "DATA" not in spoken(server, 1)
        assert server.delivered == {"1@x.test": 1, "2@x.test": 1, "3@x.test": 1}


def test_recipients_that_take_too_long_are_repeated_on_a_new_connection() -> None:
    with FaultServer([On("rcpt", times=1, match="2@", do=stall(3))]) as server:
        send(server, mail("1@x.test", "2@x.test"), timeout=SHORT)
        assert server.delivered == {"1@x.test": 1, "2@x.test": 1}


def test_a_reset_that_is_refused_costs_a_connection_and_no_message() -> None:
    script = [On("rcpt", message=1, do=reply(550)), On("rset", do=reply(500))]
    with FaultServer(script) as server:
        fail(server, retries=0)
        send(server, retries=0)
        assert server.delivered == ONCE
        assert server.connections == 2


@pytest.mark.parametrize("code", [450, 554])
def test_a_refusal_within_the_content_is_not_tried_again(code: int) -> None:
    early = On("body", after_bytes=50_000, do=reply(code, "4.3.0 enough"))
    with FaultServer([early], rcvbuf=4096) as server:
        message = mail()
        message.body = BIG * 30_000
        _, error = fail(server, message, timeout=1)
        assert isinstance(error, MessageRefused)
        assert "before its end" in str(error)
        assert error.transient is (code < 500)
        assert server.connections == 1
        assert server.delivered == {}


def test_refusals_that_cost_connections_do_not_use_up_the_tries_of_others() -> None:
    early = On("body", match=None, after_bytes=50_000, times=3, do=reply(554))
    with FaultServer([early], rcvbuf=4096) as server:
        bad = mails(3)
        for each in bad:
            each.body = BIG * 30_000
        server.script.append(On("mail", times=1, message=4, do=drop()))
        messages = [*bad, mail("last@x.test")]
        with pytest.raises(MessageRefused) as raised:
            backend(server, timeout=1, retries=1).send_messages(messages)
        assert [each.outcome for each in raised.value.results] == [NOT_SENT] * 3 + [SENT]  # fmt: skip
        assert server.delivered == {"last@x.test": 1}


def test_a_goodbye_at_the_end_is_a_refusal_for_now() -> None:
    with FaultServer([On("dot", times=1, do=reply(421, "bye", close=True))]) as server:
        message, error = fail(server)
        assert isinstance(error, MessageRefused)
        assert error.transient
        assert result(message).outcome is NOT_SENT
        send(server)
        assert server.delivered == ONCE
        assert server.connections == 2


def test_a_server_that_waits_for_a_message_it_refused_gets_none() -> None:
    script = [On("mail", do=reply(451)), On("rcpt", do=reply(250)), On("data", do=reply(354))]  # fmt: skip
    with FaultServer(script) as server:
        assert isinstance(fail(server)[1], SenderRefused)
        assert server.deliveries == []


# -- lost after it: repeated under the key, or unknown ---------------------------------------


ENDS = cases(
    fin=drop(),
    rst=drop(rst=True),
    hang=hang(),
    cut_off=raw(b"250-queued\r\n", close=True),
    no_reply=raw(b"ok\r\n", close=True),
    go_ahead=reply(354, close=True),
)


@pytest.mark.parametrize("accepted", cases(taken=True, not_taken=False))
@pytest.mark.parametrize("do", ENDS)
def test_an_unconfirmed_message_is_repeated_under_its_key(
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


def taken(do: Action) -> Action:
    """Deliver the message, whatever the answer is."""
    return lambda answer: Answer(answer.code, do(answer).play)


def test_a_repeat_has_the_same_bytes_and_a_connection_of_its_own() -> None:
    with FaultServer([On("dot", times=1, do=drop())]) as server:
        send(server)
        first, second = server.received[1], server.received[2]
        begin = b"MAIL FROM"
        assert first[first.index(begin) :] == second[second.index(begin) :]


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
        assert server.connections == 1
        assert len(server.deliveries) == 1
        assert error.idempotency_key is None


def test_without_idempotency_the_callers_key_is_written_but_not_relied_on() -> None:
    with FaultServer([On("dot", times=1, do=drop(deliver=True))]) as server:
        message = mail()
        message.idempotency_key = "order-7"  # type: ignore[attr-defined]
        _, error = fail(server, message, idempotency=False)
        assert server.deliveries[0].key == "order-7"
        assert server.connections == 1
        assert error.idempotency_key == "order-7"


def test_the_callers_key_is_used_as_it_is_for_every_repeat() -> None:
    with FaultServer([On("dot", times=2, do=drop(deliver=True))], idempotency=True) as server:  # fmt: skip
        message = mail()
        message.idempotency_key = "order-7"  # type: ignore[attr-defined]
        send(server, message)
        assert [each.key for each in server.deliveries] == ["order-7"]
        assert server.replays == 2
        assert server.connections == 3


def test_a_message_that_is_sent_twice_on_purpose_is_delivered_twice() -> None:
    with FaultServer(idempotency=True) as server:
        message = mail()
        send(server, message)
        send(server, message)
        assert server.delivered == {BOB: 2}
        assert len({each.key for each in server.deliveries}) == 2


def test_a_repeat_that_finds_the_first_in_progress_waits_for_it() -> None:
    script = [On("dot", times=1, do=drop()), On("dot", times=2, do=reply(451, "4.5.0 in progress"))]  # fmt: skip
    with FaultServer(script) as server:
        message, _ = send(server)
        assert result(message).attempts == 4
        assert server.delivered == ONCE


def test_a_repeat_that_is_refused_for_good_proves_nothing() -> None:
    script = [On("dot", times=1, do=drop(deliver=True)), On("dot", do=reply(554, "conflict"))]  # fmt: skip
    with FaultServer(script) as server:
        message, error = fail(server)
        assert isinstance(error, DeliveryUnknown)
        assert result(message).outcome is UNKNOWN
        assert result(message).attempts == 2
        assert statuses(message) == {BOB: "unknown"}
        assert server.delivered == ONCE


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
@pytest.mark.parametrize("code", [451, 550])
def test_a_repeat_that_is_refused_earlier_proves_nothing_either(
    phase: Any, code: int
) -> None:
    with FaultServer(idempotency=True) as server:
        server.script += [
            On("dot", times=1, do=drop(deliver=True)),
            On(phase, connection=2, times=1, do=reply(code)),
        ]
        if code == 451:
            message, _ = send(server)
            assert result(message).attempts == 3
        else:
            _, error = fail(server)
            assert isinstance(error, DeliveryUnknown)
        assert server.delivered == ONCE


@pytest.mark.parametrize("phase", ["banner", "auth", "mail", "rcpt", "data", "body"])
def test_a_repeat_that_is_lost_is_repeated(phase: Any) -> None:
    script = [On("dot", times=1, do=drop(deliver=True)), On(phase, connection=2, do=drop())]  # fmt: skip
    with FaultServer(script, idempotency=True) as server:
        send(server, retries=0)
        assert server.delivered == ONCE
        assert server.connections == 3


@pytest.mark.parametrize(
    ("phase", "do"),
    [("banner", reply(554)), ("auth", reply(535)), ("tls", raw(b"x" * 99))],
    ids=["banner", "auth", "tls"],
)
def test_a_repeat_that_cannot_connect_leaves_it_unknown(phase: Any, do: Action) -> None:
    with FaultServer([On("dot", times=1, do=drop(deliver=True))]) as server:
        for number in range(2, 30):
            server.script.append(On(phase, connection=number, do=do))
        message, error = fail(server, deadline=1)
        assert isinstance(error, DeliveryUnknown)
        assert result(message).outcome is UNKNOWN
        assert server.delivered == ONCE


def test_repeats_end_with_the_deadline() -> None:
    with FaultServer([On("dot", do=drop())]) as server:
        began = time.monotonic()
        message, error = fail(server, deadline=1)
        assert time.monotonic() - began < 3
        assert isinstance(error, DeliveryUnknown)
        assert 2 <= result(message).attempts <= 6


def unconfirmed(one: Any) -> None:
    """Let an attempt end without a reply, as if it had been sent."""
    attempt = one.attempt()
    attempt.phase, attempt.failure = Phase.COMMIT, ConnectionResetError("gone")
    one.record(attempt)


def test_repeats_end_with_their_number() -> None:
    config = backend_config({"api_token": "lm_x", "host": "127.0.0.1"}).relay
    (one,) = delivery.transactions([envelope(idempotency_key="k")], config)
    for _ in range(transaction.MAX_REPEATS):
        unconfirmed(one)
        assert not one.done
    unconfirmed(one)
    assert one.done
    assert one.outcome is UNKNOWN


def test_a_repeat_waits_for_its_time_and_no_longer_than_the_deadline() -> None:
    config = backend_config({"api_token": "lm_x", "host": "127.0.0.1"}).relay
    (one,) = delivery.transactions([envelope(idempotency_key="k")], config)
    unconfirmed(one)
    pause = one.not_before - time.monotonic()
    assert 0 < pause <= 1.5 * transaction.PAUSE

    (late,) = delivery.transactions([envelope(idempotency_key="k")], config)
    late.deadline.started = time.monotonic() - config.deadline + 0.01
    unconfirmed(late)
    assert late.done


def test_pauses_grow_up_to_a_limit_and_differ() -> None:
    for tries, seconds in [(1, 0.1), (2, 0.2), (3, 0.4), (7, 6.4), (8, 10), (99, 10)]:
        pauses = [transaction.pause(tries) for _ in range(200)]
        assert 0.5 * seconds <= min(pauses) < max(pauses) <= 1.5 * seconds


def test_a_repeat_comes_after_a_pause() -> None:
    with FaultServer([On("dot", times=1, do=drop())]) as server:
        message, _ = send(server)
        assert result(message).elapsed >= 0.5 * transaction.PAUSE


def test_a_time_that_was_used_up_before_the_first_try_is_the_reason() -> None:
    with FaultServer() as server:
        config = relay(server, deadline=9)
        (one,) = delivery.transactions([envelope()], config)
        one.deadline.started = time.monotonic() - 10
        assert delivery.deliver([[one]], config) is None
        assert one.outcome is NOT_SENT
        assert isinstance(one.error, ConnectionLost)
        assert "the deadline of 9 s is over: the message was not sent" in str(one.error)
        assert server.connections == 0


def test_a_time_that_connecting_used_up_leaves_that_as_the_reason() -> None:
    with FaultServer([On("banner", do=hang())]) as server:
        message, error = fail(server, deadline=SHORT, retries=9)
        assert isinstance(error, ConnectFailed)
        assert "greeting" in str(error)
        assert result(message).attempts == 0


def test_a_recipient_refused_before_the_loss_is_not_in_the_repeat() -> None:
    script = [On("rcpt", connection=1, match="2@", do=reply(450, "4.2.1 later")), On("dot", times=1, do=drop(deliver=True))]  # fmt: skip
    with FaultServer(script, idempotency=True) as server:
        message, _ = send(server, mail("1@x.test", "2@x.test", "3@x.test"))
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}
        assert b"RCPT TO:<2@x.test>" not in server.received[2]
        assert statuses(message) == {"1@x.test": "queued", "2@x.test": "failed", "3@x.test": "queued"}  # fmt: skip


def test_a_recipient_refused_on_the_repeat_may_have_it_from_the_first_try() -> None:
    script = [On("dot", times=1, do=drop(deliver=True)), On("rcpt", connection=2, match="2@", do=reply(550))]  # fmt: skip
    with FaultServer(script) as server:
        message, _ = send(server, mail("1@x.test", "2@x.test"))
        assert statuses(message) == {"1@x.test": "queued", "2@x.test": "unknown"}


def test_a_relay_that_loses_8bitmime_meanwhile_leaves_it_unknown() -> None:
    ehlo = "relay\nAUTH PLAIN"
    script = [On("dot", times=1, do=drop(deliver=True)), On("ehlo", connection=2, do=reply(250, ehlo))]  # fmt: skip
    with FaultServer(script) as server:
        message = mail()
        message.body = "\u00e9"
        _, error = fail(server, message)
        assert isinstance(error, DeliveryUnknown)
        assert result(message).attempts == 2
        assert server.delivered == ONCE


def test_an_unknown_delivery_can_be_repeated_elsewhere_by_its_envelope() -> None:
    with FaultServer([On("dot", do=drop(deliver=True), times=1), On("mail", connection=2, times=1, do=reply(550))], idempotency=True) as server:  # fmt: skip
        message, error = fail(server)
        assert isinstance(error, DeliveryUnknown)
        assert "EmailBackend.repeat(error.envelopes) is safe" in str(error)
        copied = pickle.loads(pickle.dumps(error))
        assert TOKEN.encode() not in pickle.dumps(error)
        assert copied.envelope == error.envelopes[0]
        assert copied.idempotency_key == result(message).idempotency_key
        assert copied.result == result(message)

        config = relay(server)
        (transaction,) = delivery.transactions([copied.envelope], config)
        assert delivery.deliver([[transaction]], config) is None
        assert transaction.outcome is SENT
        assert server.delivered == ONCE
        assert server.replays == 1


def test_a_pause_grows_and_ends_with_the_deadline() -> None:
    assert transaction.pause(1) <= 1.5 * transaction.PAUSE
    assert transaction.pause(20) >= 0.5 * transaction.MAX_PAUSE
    assert transaction.pause(20, most=0.25) == 0.25
    assert transaction.pause(1, most=-1.0) == 0.0


def test_a_confirmation_is_enough_though_the_connection_is_lost_behind_it() -> None:
    with FaultServer([On("dot", times=1, do=drop(after=True))]) as server:
        send(server)
        send(server)
        assert server.delivered == {BOB: 2}
        assert server.connections == 2


def test_a_late_confirmation_is_one() -> None:
    with FaultServer([On("dot", do=stall(2 * SHORT))]) as server:
        send(server, timeout=SHORT, final_reply_timeout=5)
        assert server.delivered == ONCE
        assert server.connections == 1


# -- interrupts ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("phase", "outcome", "recipient"),
    [
        ("banner", NOT_SENT, "failed"),
        ("auth", NOT_SENT, "failed"),
        ("mail", NOT_SENT, "failed"),
        ("rcpt", NOT_SENT, "failed"),
        ("data", NOT_SENT, "failed"),
        ("dot", UNKNOWN, "unknown"),
    ],
)
def test_an_interrupt_propagates_and_the_message_ends_with_what_is_certain(
    phase: Any, outcome: Outcome, recipient: str, kind: type[BaseException]
) -> None:
    message = mail()
    with FaultServer() as server, interruptible(kind) as strike:
        server.script.append(On(phase, times=1, do=strike_and_wait(strike)))
        with listening() as heard, pytest.raises(kind):
            backend(server).send_messages([message])
        assert server.wait_for(lambda: server.open_connections == 0)
        assert result(message).outcome is outcome
        assert statuses(message) == {BOB: recipient}
        if phase not in ("banner", "auth"):
            # Replies that came with the interrupt may not have been read.
            before = {Phase.MAIL, Phase.RCPT, Phase.DATA}
            expected = {Phase.COMMIT} if outcome is UNKNOWN else before
            assert result(message).phase in expected
            assert result(message).attempts == 1
        ((failed, found, error),) = heard.failed
        assert (failed, found) == (message, result(message))
        assert heard.sent == []
        assert isinstance(error, DeliveryUnknown if outcome is UNKNOWN else ConnectionLost)  # fmt: skip
        assert "interrupted" in str(error)
        assert server.delivered == {}

        send(server)
        assert server.delivered == ONCE


def test_an_interrupt_while_a_repeat_is_awaited_leaves_it_unknown() -> None:
    with FaultServer() as server, interruptible() as strike:
        server.script += [On("dot", times=1, do=drop(deliver=True)), On("banner", connection=2, do=strike_and_wait(strike))]  # fmt: skip
        message = mail()
        with pytest.raises(KeyboardInterrupt):
            backend(server).send_messages([message])
        assert result(message).outcome is UNKNOWN
        assert server.delivered == ONCE


def test_an_interrupt_within_a_repeat_leaves_it_unknown() -> None:
    with FaultServer() as server, interruptible() as strike:
        server.script += [On("dot", times=1, do=drop(deliver=True)), On("dot", connection=2, do=strike_and_wait(strike))]  # fmt: skip
        message = mail()
        with pytest.raises(KeyboardInterrupt):
            backend(server).send_messages([message])
        assert result(message).outcome is UNKNOWN
        assert result(message).attempts == 2


def test_what_was_confirmed_before_an_interrupt_is_sent() -> None:
    with FaultServer() as server, session(server) as held:
        (one,) = delivery.transactions([envelope()], relay(server))
        attempt = one.attempt()
        attempt.until = one.deadline.start()
        held.send(attempt)
        one.interrupt(attempt)
        assert one.outcome is SENT


def batch(server: FaultServer, count: int, **options: Any) -> tuple[Any, Any]:
    config = relay(server, **options)
    envelopes = [
        envelope(f"{number}@x.test", idempotency_key=f"key {number}")
        for number in range(1, count + 1)
    ]
    return [delivery.transactions([each], config) for each in envelopes], config


def test_a_batch_that_is_stopped_begins_nothing() -> None:
    stop = threading.Event()
    stop.set()
    with FaultServer() as server:
        messages, config = batch(server, 3)
        assert delivery.deliver(messages, config, stop=stop) is None
        assert [each.outcome for (each,) in messages] == [NOT_SENT] * 3
        assert all(each.done for (each,) in messages)
        assert server.connections == 0


@pytest.mark.parametrize("chunking", cases(dot=False, bdat=True))
def test_a_batch_that_is_stopped_in_the_middle_ends_with_what_is_certain(
    chunking: Any,
) -> None:
    stop = threading.Event()

    def stop_now(answer: Answer) -> Answer:
        stop.set()
        return answer

    script = [On("dot", message=2, do=stop_now), On("dot", message=3, do=hang())]
    with FaultServer(script, features=(*FEATURES, "CHUNKING")) as server:
        messages, config = batch(server, 5, chunking=chunking)
        assert delivery.deliver(messages, config, stop=stop) is None
        outcomes = [each.outcome for (each,) in messages]
        if chunking:
            # How much of the window was confirmed by then is a matter of luck.
            assert set(outcomes[:2]) <= {SENT, UNKNOWN}
            assert outcomes[2:] == [UNKNOWN] * 3
        else:
            assert outcomes == [SENT] * 2 + [NOT_SENT] * 3
        assert server.wait_for(lambda: len(server.deliveries) == 2)
        assert server.wait_for(lambda: server.open_connections == 0)


# -- many recipients ------------------------------------------------------------------------


def test_a_chunk_is_not_repeated_without_the_word_on_each_recipient() -> None:
    # A repeat would be confirmed for one whose refusal was lost the first time.
    # By then, the end of the chunk is on its way.
    script = [On("rcpt", match="two", times=1, do=stall(SHORT, drop()))]
    features = (*FEATURES, "CHUNKING")
    with FaultServer(script, features=features, idempotency=True) as server:
        message = mail("one@x.test", "two@x.test")
        _, error = fail(server, message, chunking=True)
        assert isinstance(error, DeliveryUnknown)
        assert "look it up" in str(error)
        assert set(statuses(message).values()) == {"unknown"}
        assert server.connections == 1
        assert server.delivered == {}


def test_a_chunk_for_one_recipient_is_repeated() -> None:
    script = [On("rcpt", times=1, do=drop())]
    features = (*FEATURES, "CHUNKING")
    with FaultServer(script, features=features, idempotency=True) as server:
        send(server, chunking=True)
        assert server.connections == 2
        assert server.delivered == ONCE


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (452, "4.5.3 too many"),
        (452, "too many"),
        (552, "5.5.3 too many"),
        (552, "too many"),
    ],
)
def test_recipients_that_are_too_many_at_once_get_transactions_of_their_own(
    code: int, text: str
) -> None:
    everybody = [f"{number}@x.test" for number in range(1, 6)]
    too_many = reply(code, text)
    script = [
        On("rcpt", message=1, match="[345]@", do=too_many),
        On("rcpt", message=2, match="5@", do=too_many),
    ]
    with FaultServer(script, idempotency=True) as server:
        message, _ = send(server, mail(*everybody))
        assert [each.recipients for each in server.deliveries] == [
            ("1@x.test", "2@x.test"),
            ("3@x.test", "4@x.test"),
            ("5@x.test",),
        ]
        key = result(message).idempotency_key
        assert server.deliveries[0].key == key
        assert len({each.key for each in server.deliveries}) == 3
        assert statuses(message) == dict.fromkeys(everybody, "queued")
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (452, "4.3.1 disk full"),
        (450, "4.5.3 odd"),
        (552, "5.2.2 full"),
        (550, "5.5.3 odd"),
    ],
)
def test_other_refusals_of_recipients_get_no_transaction_of_their_own(
    code: int, text: str
) -> None:
    with FaultServer([On("rcpt", match="2@", do=reply(code, text))]) as server:
        message, _ = send(server, mail("1@x.test", "2@x.test"))
        assert server.delivered == {"1@x.test": 1}
        assert statuses(message)["2@x.test"] in ("failed", "rejected")


def test_when_even_one_recipient_is_too_many_the_message_is_refused() -> None:
    with FaultServer([On("rcpt", do=reply(452, "4.5.3 too many"))]) as server:
        _, error = fail(server, mail("1@x.test", "2@x.test"))
        assert isinstance(error, RecipientsRefused)
        assert spoken(server).count("MAIL") == 1


def test_a_content_that_is_refused_is_not_offered_to_the_other_recipients() -> None:
    script = [On("rcpt", match="2@", do=reply(452, "4.5.3 later")), On("dot", do=reply(554))]  # fmt: skip
    with FaultServer(script) as server:
        assert isinstance(fail(server, mail("1@x.test", "2@x.test"))[1], MessageRefused)
        assert spoken(server).count("MAIL") == 1


def test_recipients_that_were_too_many_follow_a_repeat() -> None:
    script = [On("rcpt", message=1, match="2@", do=reply(452, "4.5.3 later")), On("dot", times=1, do=drop(deliver=True))]  # fmt: skip
    with FaultServer(script, idempotency=True) as server:
        message, _ = send(server, mail("1@x.test", "2@x.test"))
        assert server.delivered == {"1@x.test": 1, "2@x.test": 1}
        assert statuses(message) == {"1@x.test": "queued", "2@x.test": "queued"}
        assert server.replays == 1


def test_recipients_that_were_too_many_are_sent_to_though_the_first_are_unknown() -> (
    None
):
    script = [On("rcpt", message=1, match="2@", do=reply(452, "4.5.3 later")), On("dot", times=1, do=drop())]  # fmt: skip
    with FaultServer(script) as server:
        message, error = fail(server, mail("1@x.test", "2@x.test"), idempotency=False)
        assert isinstance(error, DeliveryUnknown)
        assert server.delivered == {"2@x.test": 1}
        assert statuses(message) == {"1@x.test": "unknown", "2@x.test": "queued"}
        assert [each.recipients for each in error.envelopes] == [("1@x.test",)]


def test_a_relay_that_takes_one_at_a_time_is_bounded_by_the_deadline() -> None:
    everybody = [f"{number}@x.test" for number in range(1, 40)]

    def one_at_a_time(answer: Answer) -> Answer:
        first = spoken(server)[-1] == "RCPT" and spoken(server)[-2] == "MAIL"
        return answer if first else reply(452, "4.5.3 slowly")(answer)

    with FaultServer(features=["8BITMIME"]) as server:
        server.script += [On("rcpt", do=one_at_a_time), On("mail", do=stall(0.1))]
        began = time.monotonic()
        message, _ = send(server, mail(*everybody), deadline=1)
        assert time.monotonic() - began < 3
        assert 1 < len(server.deliveries) < 39
        assert set(server.delivered.values()) == {1}
        told = {who for who, each in statuses(message).items() if each == "queued"}
        assert told == set(server.delivered)


def test_more_than_fifty_recipients_are_divided() -> None:
    everybody = [f"{number}@x.test" for number in range(120)]
    with FaultServer(idempotency=True) as server:
        message, _ = send(server, mail(*everybody))
        assert [len(each.recipients) for each in server.deliveries] == [50, 50, 20]
        key = result(message).idempotency_key
        assert server.deliveries[0].key == key
        assert len({each.key for each in server.deliveries}) == 3
        assert len({each.content.partition(b"\r\n")[2] for each in server.deliveries}) == 1  # fmt: skip
        assert set(server.delivered.values()) == {1}
        assert set(server.delivered) == set(everybody)
        assert server.connections == 1


@pytest.mark.parametrize(
    ("do", "outcome", "state"),
    [(reply(554), SENT, "rejected"), (drop(deliver=True), UNKNOWN, "unknown")],
    ids=["refused", "unknown"],
)
def test_one_part_of_many_recipients_may_end_otherwise(
    do: Action, outcome: Outcome, state: str
) -> None:
    everybody = [f"{number}@x.test" for number in range(120)]
    message = mail(*everybody)
    with FaultServer([On("dot", message=2, do=do)]) as server:
        sender = backend(server, idempotency=False, fail_silently=True)
        sender.send_messages([message])
        assert result(message).outcome is outcome
        found = list(statuses(message).values())
        assert found == ["queued"] * 50 + [state] * 50 + ["queued"] * 20
        assert set(server.delivered.values()) == {1}


def test_an_address_that_is_named_twice_is_sent_to_once() -> None:
    with FaultServer() as server:
        send(server, mail(BOB, BOB, cc=[BOB], bcc=[BOB]))
        assert server.delivered == ONCE


def test_a_blind_copy_is_delivered_and_not_shown() -> None:
    with FaultServer() as server:
        message = mail(bcc=["blind@x.test"])
        message.to = []
        send(server, message)
        assert server.delivered == {"blind@x.test": 1}
        assert b"blind" not in server.deliveries[0].content


def test_a_message_to_nobody_needs_no_connection() -> None:
    with FaultServer() as server:
        message = mail()
        message.to = []
        assert backend(server).send_messages([message]) == 0
        assert server.connections == 0


# -- time -----------------------------------------------------------------------------------


SLOW = cases(
    hang=hang(),
    trickle=trickle(b"250-slow\r\n" * 1000, 0.05),
    endless=endless(b"250-more\r\n"),
    huge=endless(b"x" * 4096),
)


@pytest.mark.parametrize("do", SLOW)
@pytest.mark.parametrize("phase", ["banner", "ehlo", "auth", "mail", "rcpt", "data"])
def test_the_deadline_bounds_a_server_that_never_gets_done(
    phase: Any, do: Action
) -> None:
    with FaultServer([On(phase, do=do)]) as server:
        began = time.monotonic()
        message, error = fail(server, timeout=60, deadline=SHORT, retries=9)
        assert time.monotonic() - began < 3
        assert isinstance(error, ConnectFailed | ConnectionLost)
        assert result(message).outcome is NOT_SENT
        assert server.wait_for(lambda: server.open_connections == 0)


@pytest.mark.parametrize("do", SLOW)
def test_the_deadline_bounds_a_reply_to_the_end(do: Action) -> None:
    with FaultServer([On("dot", do=do)]) as server:
        began = time.monotonic()
        message, error = fail(server, final_reply_timeout=60, deadline=SHORT)
        assert time.monotonic() - began < 3
        assert isinstance(error, DeliveryUnknown)
        assert result(message).outcome is UNKNOWN


def test_the_deadline_bounds_many_replies_that_are_each_in_time() -> None:
    everybody = [f"{number}@x.test" for number in range(40)]
    with FaultServer([On("rcpt", do=stall(0.2))]) as server:
        began = time.monotonic()
        message, error = fail(server, mail(*everybody), timeout=0.5, deadline=1)
        assert time.monotonic() - began < 3
        assert isinstance(error, ConnectionLost)
        assert "timed out" in str(error)
        assert server.delivered == {}
        assert result(message).elapsed >= 1


def test_the_deadline_holds_for_all_parts_of_a_message() -> None:
    everybody = [f"{number}@x.test" for number in range(220)]
    with FaultServer([On("mail", do=stall(0.4))]) as server:
        began = time.monotonic()
        message = mail(*everybody)
        backend(server, deadline=1, fail_silently=True).send_messages([message])
        assert time.monotonic() - began < 3
        assert result(message).outcome is SENT
        assert set(server.delivered.values()) == {1}
        told = {who for who, each in statuses(message).items() if each == "queued"}
        assert told == set(server.delivered)
        assert len(told) in (50, 100, 150)


def test_each_message_has_a_deadline_of_its_own() -> None:
    with FaultServer([On("dot", do=stall(SHORT))]) as server:
        assert backend(server, deadline=2 * SHORT).send_messages(mails(5)) == 5


def test_losses_pause_no_longer_than_the_deadline() -> None:
    with FaultServer([On("banner", do=drop())]) as server:
        began = time.monotonic()
        fail(server, retries=99, deadline=1)
        assert time.monotonic() - began < 4


# -- in all -----------------------------------------------------------------------------------


def test_a_first_mail_and_a_later_one_say_whether_their_connection_was_new() -> None:
    with FaultServer() as server:
        first, second = send(server)[0], send(server)[0]
        assert not result(first).connection_reused
        assert result(second).connection_reused
        assert result(second).elapsed > 0


def test_without_a_pool_each_call_has_a_connection_of_its_own() -> None:
    with FaultServer() as server:
        send(server, pool=False)
        assert backend(server, pool=False).send_messages(mails(3)) == 3
        assert server.connections == 2
        assert server.wait_for(lambda: server.open_connections == 0)


def test_a_connection_carries_no_more_messages_than_it_may() -> None:
    with FaultServer() as server:
        sender = backend(server, pool={"max_messages": 2})
        assert sender.send_messages(mails(5)) == 5
        assert server.connections == 3
        assert set(server.delivered.values()) == {1}


def test_a_connection_carries_no_more_messages_than_the_server_says() -> None:
    with FaultServer(features=(*FEATURES, "LIMITS MAILMAX=3")) as server:
        assert backend(server).send_messages(mails(7)) == 7
        assert server.connections == 3


def test_tls_that_fails_is_not_tried_again_and_a_message_keeps_its_outcome() -> None:
    with FaultServer(cert="expired") as server:
        message, error = fail(server, retries=9)
        assert isinstance(error, TLSFailed)
        assert result(message).phase is Phase.TLS
        assert statuses(message) == {BOB: "failed"}
        assert server.connections == 1


def test_a_message_that_does_not_fit_the_relay_is_invalid() -> None:
    with FaultServer(features=["SIZE 100"]) as server:
        message = mail()
        with pytest.raises(LettermintInvalidMessage, match="relay takes 100"):
            backend(server).send_messages([message])
        assert result(message).phase is Phase.MESSAGE
        assert spoken(server) == []


@pytest.mark.parametrize(
    "script",
    cases(
        connect=[On("banner", do=drop())],
        login=[On("auth", do=reply(535))],
        sender=[On("mail", do=reply(550))],
        recipients=[On("rcpt", do=reply(550))],
        lost=[On("data", do=drop())],
        refused=[On("dot", do=reply(550))],
        unknown=[On("dot", do=drop())],
    ),
)
def test_silent_failures_are_silent_to_the_caller_only(script: list[On]) -> None:
    message = mail()
    with FaultServer(script) as server, listening() as heard:
        sender = backend(server, fail_silently=True, deadline=1)
        assert sender.send_messages([message]) == 0
    assert [each[0] for each in heard.failed] == [message]
    assert result(message).outcome in (NOT_SENT, UNKNOWN)


def test_accepted_in_silence_and_hung_up_is_delivered_once() -> None:
    """As most real losses look: the reply is lost, the message is not."""
    script = [On("dot", times=3, do=accept_then(drop()))]
    with FaultServer(script, idempotency=True) as server:
        send(server)
        assert server.delivered == ONCE
        assert server.replays >= 1
