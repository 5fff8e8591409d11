"""One message to a relay that fails: how it ends, and what is tried again."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import (
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    LettermintError,
    MessageRefused,
    RecipientsRefused,
    SenderRefused,
    TLSFailed,
)
from django_lettermint.results import Outcome, Phase
from tests.faultserver import (
    FEATURES,
    Answer,
    FaultServer,
    On,
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
#: A hundred thousand of these are more than a kernel buffers.
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


# -- lost before the end of the message: tried again ---------------------------------------


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
        assert retries(server) == 1
        assert server.violations == []


@pytest.mark.parametrize("do", [drop(), drop(rst=True), reply(421, close=True)], ids=["fin", "rst", "421"])  # fmt: skip
def test_a_loss_within_the_content_is_tried_again(do: Action) -> None:
    script = [On("body", times=1, after_bytes=50_000, do=do)]
    with FaultServer(script, rcvbuf=4096) as server:
        message = mail()
        message.body = BIG * 100_000
        send(server, message, timeout=5)
        assert server.delivered == ONCE
        assert server.connections == 2


def test_a_server_that_stops_reading_fails_after_the_timeout() -> None:
    with FaultServer([On("body", do=hang())], rcvbuf=4096) as server:
        message = mail()
        message.body = BIG * 100_000
        _, error = fail(server, message, timeout=SHORT, retries=1)
        assert isinstance(error, ConnectionLost)
        assert result(message).phase is Phase.CONTENT
        assert server.connections == 2


@pytest.mark.parametrize("do", LOSSES)
def test_a_used_connection_that_is_lost_is_replaced_within_no_retries(
    do: Action,
) -> None:
    script = [On("rcpt", message=2, do=do)]
    with FaultServer(script) as server:
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
        # No sign of it until they are used.
        server.script.append(On("mail", connection=1, do=drop()))
        server.script.append(On("mail", connection=2, do=drop()))
        server.script.append(On("mail", connection=3, do=drop()))
        assert sender.send_messages([mail()]) == 1
        assert server.delivered == ONCE
        assert server.connections == 4
        assert spoken(server).count("MAIL") == 2


def test_a_connection_that_the_server_closed_while_idle_is_replaced_unnoticed() -> None:
    with FaultServer() as server:
        send(server, retries=0)
        server.act_on_all(reply(421, "4.4.2 idle", close=True))
        message, _ = send(server, retries=0)
        assert server.delivered == {BOB: 2}
        assert result(message).attempts == 1
        assert server.connections == 2


def test_a_421_after_some_recipients_sends_to_none_and_then_to_all() -> None:
    script = [On("rcpt", connection=1, match="2@", do=reply(421, "bye", close=True))]
    with FaultServer(script, features=["8BITMIME"]) as server:
        send(server, mail("1@x.test", "2@x.test", "3@x.test"))
        assert "DATA" not in spoken(server, 1)
        assert server.delivered == {"1@x.test": 1, "2@x.test": 1, "3@x.test": 1}


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
        message.body = BIG * 100_000
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
            each.body = BIG * 100_000
        server.script.append(On("mail", times=1, message=4, do=drop()))
        messages = [*bad, mail("last@x.test")]
        with pytest.raises(MessageRefused) as raised:
            backend(server, timeout=1, retries=1).send_messages(messages)
        assert [each.outcome for each in raised.value.results] == [NOT_SENT] * 3 + [SENT]  # fmt: skip
        assert server.delivered == {"last@x.test": 1}


def test_a_421_at_the_end_is_a_refusal_for_now() -> None:
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


# -- lost after it: repeated under its key, or unknown ---------------------------------------


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
    with FaultServer([On("dot", times=1, do=drop())], idempotency=True) as server:
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


def test_a_relay_on_loopback_is_not_expected_to_know_keys() -> None:
    with FaultServer([On("dot", times=1, do=drop(deliver=True))]) as server:
        options = server.options()
        del options["idempotency"]
        with pytest.raises(DeliveryUnknown):
            EmailBackend(**options).send_messages([mail()])
        assert server.delivered == ONCE


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


def test_a_repeat_that_finds_the_first_in_progress_waits_for_it() -> None:
    script = [On("dot", times=1, do=drop()), On("dot", times=2, do=reply(451, "4.5.0 in progress"))]  # fmt: skip
    with FaultServer(script, idempotency=True) as server:
        message, _ = send(server)
        assert result(message).attempts == 4
        assert server.delivered == ONCE


def test_a_repeat_that_is_refused_for_good_proves_nothing() -> None:
    script = [On("dot", times=1, do=drop(deliver=True)), On("dot", do=reply(554, "conflict"))]  # fmt: skip
    with FaultServer(script, idempotency=True) as server:
        message, error = fail(server)
        assert isinstance(error, DeliveryUnknown)
        assert result(message).outcome is UNKNOWN
        assert result(message).attempts == 2
        assert statuses(message) == {BOB: "unknown"}
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
    with FaultServer(
        [On("dot", times=1, do=drop(deliver=True))], idempotency=True
    ) as server:
        for number in range(2, 30):
            server.script.append(On(phase, connection=number, do=do))
        message, error = fail(server, deadline=1)
        assert isinstance(error, DeliveryUnknown)
        assert result(message).outcome is UNKNOWN
        assert server.delivered == ONCE


def test_a_time_that_connecting_used_up_leaves_that_as_the_reason() -> None:
    with FaultServer([On("banner", do=hang())]) as server:
        message, error = fail(server, deadline=SHORT, retries=9)
        assert isinstance(error, ConnectFailed)
        assert "greeting" in str(error)
        assert result(message).attempts == 1


def test_a_relay_that_loses_8bitmime_meanwhile_leaves_it_unknown() -> None:
    ehlo = "relay\nAUTH PLAIN"
    script = [On("dot", times=1, do=drop(deliver=True)), On("ehlo", connection=2, do=reply(250, ehlo))]  # fmt: skip
    with FaultServer(script, idempotency=True) as server:
        message = mail()
        message.body = "\u00e9"
        _, error = fail(server, message)
        assert isinstance(error, DeliveryUnknown)
        assert result(message).attempts == 2
        assert server.delivered == ONCE


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
    phase: Any, outcome: Outcome, recipient: str
) -> None:
    message = mail()
    with FaultServer() as server, interruptible() as strike:
        server.script.append(On(phase, times=1, do=strike_and_wait(strike)))
        with listening() as heard, pytest.raises(KeyboardInterrupt):
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
    with FaultServer(idempotency=True) as server, interruptible() as strike:
        server.script += [On("dot", times=1, do=drop(deliver=True)), On("banner", connection=2, do=strike_and_wait(strike))]  # fmt: skip
        message = mail()
        with pytest.raises(KeyboardInterrupt):
            backend(server).send_messages([message])
        assert result(message).outcome is UNKNOWN
        assert server.delivered == ONCE


# -- many recipients ------------------------------------------------------------------------


def test_a_chunk_is_not_repeated_without_the_reply_for_each_recipient() -> None:
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
    recipients = [f"{number}@x.test" for number in range(1, 6)]
    too_many = reply(code, text)
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


def test_recipients_that_were_too_many_follow_a_repeat() -> None:
    script = [On("rcpt", message=1, match="2@", do=reply(452, "4.5.3 later")), On("dot", times=1, do=drop(deliver=True))]  # fmt: skip
    with FaultServer(script, idempotency=True) as server:
        message, _ = send(server, mail("1@x.test", "2@x.test"))
        assert server.delivered == {"1@x.test": 1, "2@x.test": 1}
        assert statuses(message) == {"1@x.test": "queued", "2@x.test": "queued"}
        assert server.replays == 1


def test_more_than_fifty_recipients_are_divided() -> None:
    recipients = [f"{number}@x.test" for number in range(120)]
    with FaultServer(idempotency=True) as server:
        message, _ = send(server, mail(*recipients))
        assert [len(each.recipients) for each in server.deliveries] == [50, 50, 20]
        key = result(message).idempotency_key
        assert server.deliveries[0].key == key
        assert len({each.key for each in server.deliveries}) == 3
        assert len({each.content.partition(b"\r\n")[2] for each in server.deliveries}) == 1  # fmt: skip
        assert set(server.delivered.values()) == {1}
        assert set(server.delivered) == set(recipients)
        assert server.connections == 1


@pytest.mark.parametrize(
    ("do", "outcome", "state"),
    [(reply(554), SENT, "rejected"), (drop(deliver=True), UNKNOWN, "unknown")],
    ids=["refused", "unknown"],
)
def test_one_part_of_many_recipients_may_end_otherwise(
    do: Action, outcome: Outcome, state: str
) -> None:
    recipients = [f"{number}@x.test" for number in range(120)]
    message = mail(*recipients)
    with FaultServer([On("dot", message=2, do=do)]) as server:
        sender = backend(server, idempotency=False, fail_silently=True)
        sender.send_messages([message])
        assert result(message).outcome is outcome
        found = list(statuses(message).values())
        assert found == ["queued"] * 50 + [state] * 50 + ["queued"] * 20
        assert set(server.delivered.values()) == {1}


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
        message, error = fail(server, timeout=60, deadline=SHORT, retries=9)
        assert isinstance(error, ConnectFailed | ConnectionLost)
        assert result(message).outcome is NOT_SENT
        assert server.wait_for(lambda: server.open_connections == 0)


@pytest.mark.parametrize("do", SLOW)
def test_the_deadline_bounds_a_reply_to_the_end(do: Action) -> None:
    with FaultServer([On("dot", do=do)]) as server:
        message, error = fail(server, final_reply_timeout=60, deadline=SHORT)
        assert isinstance(error, DeliveryUnknown)
        assert result(message).outcome is UNKNOWN


def test_the_deadline_bounds_many_replies_that_are_each_in_time() -> None:
    recipients = [f"{number}@x.test" for number in range(40)]
    with FaultServer([On("rcpt", do=stall(0.2))]) as server:
        message, error = fail(server, mail(*recipients), timeout=0.5, deadline=1)
        assert isinstance(error, ConnectionLost)
        assert "timed out" in str(error)
        assert server.delivered == {}
        assert result(message).elapsed >= 1


def test_the_deadline_holds_for_all_parts_of_a_message() -> None:
    recipients = [f"{number}@x.test" for number in range(220)]
    with FaultServer([On("mail", do=stall(0.4))]) as server:
        message = mail(*recipients)
        backend(server, deadline=1, fail_silently=True).send_messages([message])
        assert result(message).outcome is SENT
        assert set(server.delivered.values()) == {1}
        told = {who for who, each in statuses(message).items() if each == "queued"}
        assert told == set(server.delivered)
        assert len(told) in (50, 100, 150)


def test_each_message_has_a_deadline_of_its_own() -> None:
    with FaultServer([On("dot", do=stall(SHORT))]) as server:
        assert backend(server, deadline=2 * SHORT).send_messages(mails(5)) == 5


# -- in all -----------------------------------------------------------------------------------


def test_without_a_pool_each_call_has_a_connection_of_its_own() -> None:
    with FaultServer() as server:
        send(server, pool=False)
        assert backend(server, pool=False).send_messages(mails(3)) == 3
        assert server.connections == 2
        assert server.wait_for(lambda: server.open_connections == 0)


def test_a_connection_carries_no_more_messages_than_it_may() -> None:
    with FaultServer() as server:
        sender = backend(server, pool={"max_messages": 2})
        assert sender.send_messages([mail()]) == 1
        assert sender.send_messages(mails(5)) == 5
        assert [each.connection for each in server.deliveries] == [1, 1, 2, 2, 3, 3]


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
