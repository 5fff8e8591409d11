"""Invalid replies, losses and time-outs, before and after the commit point."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from django_lettermint.conf import backend_config
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import RelayState
from django_lettermint.smtp.replies import ProtocolError
from tests.delivery.memory_relay import MemoryRelay, Script
from tests.faultserver import (
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
    cases,
    interruptible,
    session,
    spoken,
    strike_and_wait,
    transaction,
)
from tests.smtp.sessions import (
    BIG,
    CHUNKING,
    NOT_SENT,
    SENT,
    UNKNOWN,
    ObservedStream,
    outcomes,
    send_one,
)

if TYPE_CHECKING:
    from django_lettermint.smtp.stream import SMTPStream
    from tests.faults import Action, Wire


# -- invalid replies and losses before the commit point --------------------------------


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
@pytest.mark.parametrize(
    "do",
    cases(
        short=raw(b"25\r\n"),
        long=raw(b"2500 ok\r\n"),
        blank=raw(b" 250 ok\r\n"),
        high=raw(b"850 x\r\n"),
        mixed=raw(b"250-a\r\n550 b\r\n"),
        cut=raw(b"250-a\r\n", close=True),
        no_end=raw(b"250 ok", close=True),
        endless=endless(b"250-more\r\n"),
        bye=reply(221, "bye"),
        closing=reply(421, "4.3.2 bye", close=True),
        fin=drop(),
        rst=drop(rst=True),
        hang=hang(),
        slow=trickle(b"250-slow\r\n" * 99, 0.05),
    ),
)
@pytest.mark.parametrize("pipelining", cases(on=True, off=False))
def test_an_invalid_reply_ends_the_message_before_its_content(
    phase: Any, do: Action, pipelining: Any
) -> None:
    with FaultServer([On(phase, do=do)]) as server:
        one = send_one(server, transaction(), timeout=SHORT, pipelining=pipelining)
        assert one.outcome is NOT_SENT
        assert one.phase is Phase(phase)
        assert isinstance(one.failure, OSError)
        assert one.reply is None
        assert server.wait_for(lambda: server.open_connections == 0)
        assert server.deliveries == []
        assert b"Subject" not in server.received[1]


@pytest.mark.parametrize("phase", ["mail", "rcpt"])
def test_354_to_mail_or_rcpt_sends_no_content(phase: Any) -> None:
    with FaultServer([On(phase, do=reply(354))]) as server:
        one = send_one(server, transaction())
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, ProtocolError)
        assert b"Subject" not in server.received[1]


def test_250_to_data_sends_no_content() -> None:
    with FaultServer([On("data", do=reply(250))]) as server:
        one = send_one(server, transaction())
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, ProtocolError)
        assert "unexpected reply to DATA: 250" in str(one.failure)
        assert b"Subject" not in server.received[1]


@pytest.mark.parametrize(
    "octets",
    cases(reply=b"250 spurious\r\n", closing=b"421 idle\r\n", junk=b"?\r\n"),
)
def test_input_while_idle_closes_the_connection(octets: bytes) -> None:
    with FaultServer() as server, session(server) as held:
        held.send(transaction("1@x.test"))
        server.act(1, raw(octets))
        two = transaction("2@x.test")
        held.send(two)
        assert two.outcome is NOT_SENT
        assert isinstance(two.failure, ConnectionResetError)
        assert held.closed
        assert spoken(server).count("MAIL") == 1


def test_a_connection_closed_while_idle_sends_nothing() -> None:
    with FaultServer() as server, session(server) as held:
        server.act(1, drop())
        assert not held.alive()
        one = transaction()
        held.send(one)
        assert one.outcome is NOT_SENT
        assert spoken(server) == []


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (b"451 4.3.0 oops\r\n", 451),
        (b"250 ok\r\n", None),
        (b"421 bye\r\n", None),
        (b"junk\r\n", None),
        (b"451 4.3.0 cut", None),
    ],
    ids=["refusal", "success", "closing", "junk", "cut"],
)
def test_a_second_reply_to_data_stops_the_message_before_its_end(
    extra: bytes, code: int | None
) -> None:
    def speak(_: Answer) -> Answer:
        return Answer(0, play)

    def play(wire: Wire) -> None:
        wire.write(b"354 go\r\n" + extra)
        wire.pause()

    with FaultServer([On("data", do=speak)]) as server:
        one = send_one(server, transaction(), timeout=SHORT)
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.CONTENT
        assert (one.reply.code if one.reply else None) == code
        assert (one.failure is None) is (code is not None)
        assert b"\r\n.\r\n" not in server.received[1]


def test_a_refusal_before_a_reset_counts_though_writing_fails() -> None:
    refused = raw(b"354 go\r\n552 5.3.4 too big\r\n")

    def refuse_and_reset(answer: Answer) -> Answer:
        def play(wire: Wire) -> None:
            refused(answer).play(wire)
            wire.drop(rst=True)

        return Answer(0, play)

    with FaultServer([On("data", do=refuse_and_reset)], tls=None) as server:
        one = transaction()
        with session(server) as held:
            poll = select.poll()
            poll.register(held.stream.socket, 0)  # errors only

            def before_write(data: bytes) -> None:
                if b"Subject" in data:
                    assert poll.poll(5000)

            observed = ObservedStream(held.stream, before_write=before_write)
            held.session.stream = cast("SMTPStream", observed)
            held.send(one)
        assert (one.phase, one.reply and one.reply.code) == (Phase.CONTENT, 552)
        assert one.failure is None


@pytest.mark.parametrize("close", cases(stays=False, leaves=True))
@pytest.mark.parametrize("code", [451, 552])
def test_a_refusal_while_the_content_is_written_counts(code: int, close: Any) -> None:
    early = On("body", after_bytes=50_000, do=reply(code, "4.3.0 enough", close=close))
    with FaultServer([early], rcvbuf=4096) as server:
        one = send_one(server, transaction(content=BIG), timeout=SHORT)
        assert one.outcome is NOT_SENT
        if one.reply is None:
            # The kernel may drop what a server said when it resets the connection.
            assert close
            assert isinstance(one.failure, OSError)
        else:
            assert one.reply.code == code
            assert one.phase is Phase.CONTENT
        assert server.deliveries == []
        assert server.wait_for(lambda: server.open_connections == 0)


def test_a_refusal_while_the_content_is_written_stops_the_writing() -> None:
    early = On("body", after_bytes=50_000, do=reply(552, "too big"))
    with FaultServer([early], rcvbuf=4096) as server:
        one = send_one(server, transaction(content=BIG * 5), timeout=5)
        assert one.outcome is NOT_SENT
        assert server.wait_for(lambda: server.open_connections == 0)
        assert len(server.received[1]) < len(BIG) * 4


@pytest.mark.parametrize(
    "do",
    cases(
        fin=drop(),
        rst=drop(rst=True),
        hang=hang(),
        bye=reply(421, close=True),
        done=reply(250),
    ),
)
def test_a_loss_while_the_content_is_written_is_not_sent(
    do: Action,
) -> None:
    with FaultServer([On("body", after_bytes=50_000, do=do)], rcvbuf=4096) as server:
        began = time.monotonic()
        one = send_one(server, transaction(content=BIG, seconds=30), timeout=SHORT)
        assert time.monotonic() - began < 10
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.CONTENT
        assert isinstance(one.failure, OSError)
        assert server.deliveries == []


# -- the commit point ------------------------------------------------------------------


@pytest.mark.parametrize("chunking", cases(dot=False, bdat=True))
@pytest.mark.parametrize(
    "do",
    cases(
        fin=drop(),
        rst=drop(rst=True),
        taken_in_silence=drop(deliver=True),
        hang=hang(),
        cut_off=raw(b"250-queued\r\n", close=True),
        no_end=raw(b"250 queued", close=True),
        garbage=raw(b"ok\r\n"),
        code_850=raw(b"850 ok\r\n"),
        mixed=raw(b"250-a\r\n550 b\r\n"),
        endless=endless(b"250-more\r\n"),
        go_ahead=reply(354),
        bye=reply(221),
        slow=trickle(b"250-slow\r\n" * 99, 0.05),
    ),
)
def test_without_a_valid_final_reply_the_message_is_unknown(
    do: Action, chunking: Any
) -> None:
    with FaultServer([On("dot", do=do)], features=CHUNKING) as server:
        one = send_one(
            server, transaction(), final_reply_timeout=SHORT, chunking=chunking
        )
        assert one.outcome is UNKNOWN
        assert one.phase is Phase.COMMIT
        assert isinstance(one.failure, OSError)
        assert one.reply is None
        assert server.wait_for(lambda: server.open_connections == 0)


@pytest.mark.parametrize("chunking", cases(dot=False, bdat=True))
def test_a_confirmed_message_is_sent_even_if_the_connection_is_lost_afterwards(
    chunking: Any,
) -> None:
    with FaultServer([On("dot", do=drop(after=True))], features=CHUNKING) as server:
        with session(server, chunking=chunking) as held:
            one, two = transaction("1@x.test"), transaction("2@x.test")
            held.send_all([one, two])
            assert one.outcome is SENT
            assert one.failure is None
            # A chunk may be on its way before the loss is seen.
            assert two.outcome is NOT_SENT or (chunking and two.outcome is UNKNOWN)
            assert isinstance(two.failure, OSError)
        assert server.delivered == {"1@x.test": 1}


@pytest.mark.parametrize("chunking", cases(dot=False, bdat=True))
def test_421_as_the_final_reply_is_a_refusal_and_closes_the_connection(
    chunking: Any,
) -> None:
    script = [On("dot", message=1, do=reply(421, "4.3.2 shutting down"))]
    with FaultServer(script, features=CHUNKING) as server:
        with session(server, chunking=chunking) as held:
            one, two = transaction("1@x.test"), transaction("2@x.test")
            held.send_all([one, two])
            assert one.outcome is NOT_SENT
            assert one.reply
            assert one.reply.code == 421
            assert held.closed
            assert two.outcome is NOT_SENT
            assert two.reply is None
        assert server.delivered == {}


def test_the_final_reply_has_a_timeout_of_its_own() -> None:
    with FaultServer([On("dot", do=stall(3 * SHORT))]) as server:
        one = send_one(server, transaction(), timeout=SHORT, final_reply_timeout=5)
        assert one.outcome is SENT
    with FaultServer([On("dot", do=stall(30))]) as server:
        one = send_one(server, transaction(), timeout=5, final_reply_timeout=SHORT)
        assert one.outcome is UNKNOWN


def test_an_extra_final_reply_does_not_confirm_the_next_message() -> None:
    script = [On("dot", message=1, do=accept_then(raw(b"250 ok\r\n250 ok\r\n")))]
    with FaultServer(script) as server, session(server) as held:
        several = [transaction("1@x.test"), transaction("2@x.test")]
        held.send_all(several)
        assert outcomes(several) == [SENT, NOT_SENT]
        assert isinstance(several[1].failure, ProtocolError)
        assert server.delivered == {"1@x.test": 1}


@pytest.mark.parametrize(
    ("phase", "outcome"),
    [("mail", NOT_SENT), ("rcpt", NOT_SENT), ("data", NOT_SENT), ("dot", UNKNOWN)],
)
def test_the_deadline_of_a_message_ends_any_phase(phase: Any, outcome: Outcome) -> None:
    with FaultServer([On(phase, do=hang())]) as server:
        began = time.monotonic()
        one = send_one(server, transaction(seconds=SHORT), timeout=30)
        assert time.monotonic() - began < 5
        assert one.outcome is outcome
        assert isinstance(one.failure, TimeoutError)


def test_the_deadline_of_a_message_limits_the_sum_of_slow_replies() -> None:
    everybody = [f"{number}@x.test" for number in range(20)]
    with FaultServer([On("rcpt", do=stall(0.2))]) as server:
        began = time.monotonic()
        one = send_one(server, transaction(*everybody, seconds=1), timeout=0.5)
        assert time.monotonic() - began < 2.5
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.RCPT
        assert server.deliveries == []


def test_nothing_is_sent_after_the_deadline() -> None:
    with FaultServer() as server:
        one = send_one(server, transaction(seconds=-1))
        assert one.outcome is NOT_SENT
        assert spoken(server) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("phase", "outcome", "chunking"),
    [
        ("mail", NOT_SENT, False),
        ("rcpt", NOT_SENT, False),
        ("data", NOT_SENT, False),
        ("dot", UNKNOWN, False),
        ("dot", UNKNOWN, True),
    ],
)
def test_an_interrupt_propagates_and_leaves_a_certain_outcome(
    phase: Any, outcome: Outcome, chunking: Any, kind: type[BaseException]
) -> None:
    with FaultServer(features=CHUNKING) as server, interruptible(kind) as strike:
        server.script.append(On(phase, do=strike_and_wait(strike)))
        with session(server, chunking=chunking) as held:
            one, two = transaction("1@x.test"), transaction("2@x.test")
            with pytest.raises(kind):
                held.send(one, [two])
            assert held.closed
            assert one.outcome is outcome
            assert two.outcome is NOT_SENT
        assert server.wait_for(lambda: server.open_connections == 0)


def test_a_message_whose_time_has_passed_is_not_committed() -> None:
    relay = MemoryRelay(Script(), knows_keys=False)
    one = transaction(seconds=-1.0)
    config = backend_config({"api_token": "t"}).relay
    # The stream in memory takes no time, so the commit point is the first to look.
    relay.connect(RelayState()).send(one, config=config)
    assert (one.outcome, one.phase) == (NOT_SENT, Phase.CONTENT)
    assert isinstance(one.failure, TimeoutError)
    assert not relay.delivered
