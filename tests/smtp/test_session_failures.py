"""Refusals, invalid replies, losses and time-outs, until and after the commit."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from django_lettermint.conf import backend_config
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import RelayState, ServerClosing
from tests.delivery.memory_relay import MemoryRelay, Script
from tests.faults import chain
from tests.faultserver import (
    FaultServer,
    On,
    accept_then,
    drop,
    endless,
    hang,
    raw,
    reply,
    stall,
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
from tests.smtp.helpers import (
    BIG,
    BY_DATA_AND_BDAT,
    CHUNKING,
    NOT_SENT,
    SENT,
    UNKNOWN,
    ObservedStream,
    code,
    outcomes,
    send_one,
    window,
)

if TYPE_CHECKING:
    from django_lettermint.smtp.stream import SMTPStream
    from tests.faults import Action

PIPELINING = pytest.mark.parametrize("pipelining", cases(on=True, off=False))
STEPS = {
    "mail": Phase.MAIL,
    "rcpt": Phase.RCPT,
    "data": Phase.DATA,
    "dot": Phase.COMMIT,
}


# -- refusals --------------------------------------------------------------------------


@PIPELINING
@pytest.mark.parametrize("status", [451, 550])
@pytest.mark.parametrize("step", STEPS)
def test_the_next_message_is_sent_after_a_refused_one_and_rset(
    step: Any, status: int, pipelining: Any
) -> None:
    with FaultServer([On(step, message=1, do=reply(status, "5.0.0 no"))]) as server:
        with session(server, pipelining=pipelining) as held:
            one, two = window("--")
            held.send(one)
            assert (one.outcome, one.phase) == (NOT_SENT, STEPS[step])
            assert (code(one), one.failure) == (status, None)
            assert one.permanent_failure is (status >= 500)
            # After a refused sender, replies are not about recipients.
            assert bool(one.replies) is (step != "mail")
            assert (held.needs_rset, held.reusable) == (True, True)
            assert held.carried is (step == "dot")
            held.send(two)
            assert two.outcome is SENT
            assert (held.needs_rset, held.reusable) == (False, True)
            assert held.carried
        assert server.delivered == {"2@x.test": 1}
        assert spoken(server).count("RSET") == 1
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize(
    ("step", "chunking"),
    [*((step, False) for step in STEPS), ("mail", True), ("rcpt", True), ("dot", True)],
)
@pytest.mark.parametrize("refusal", ["451 4.3.0 later", "550 5.0.0 no", "451 4.4.2 x"])
def test_a_refused_message_does_not_affect_pipelined_neighbours(
    step: Any, chunking: Any, refusal: str
) -> None:
    refused = On(step, message=2, do=reply(int(refusal[:3]), refusal[4:]))
    with FaultServer([refused], features=CHUNKING) as server:
        with session(server, chunking=chunking) as held:
            several = window("rrrr")
            held.send_all(several)
        assert outcomes(several) == [SENT, NOT_SENT, SENT, SENT]
        assert (several[1].phase, str(several[1].reply)) == (STEPS[step], refusal)
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1, "4@x.test": 1}
        assert server.connections == 1
        assert server.violations == []


@PIPELINING
@pytest.mark.parametrize("refusal", ["450 4.2.0 busy", "451 4.4.2 x", "554 5.4.2 x"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_message_is_sent_to_the_recipients_that_are_accepted(
    number: int, refusal: str, pipelining: Any
) -> None:
    refused = On("rcpt", match=f"{number}@", do=raw(refusal.encode() + b"\r\n"))
    with FaultServer([refused]) as server:
        one = transaction("1@x.test", "2@x.test", "3@x.test")
        send_one(server, one, pipelining=pipelining)
        assert one.outcome is SENT
        assert str(one.replies[f"{number}@x.test"]) == refusal
        assert len(one.accepted) == 2
        assert set(server.delivered) == set(one.accepted) == set(one.not_refused)


def twice(extra: bytes) -> list[On]:
    """Reply to DATA twice, and then no more."""
    return [On("data", do=chain(raw(b"354 go\r\n" + extra), hang()))]


MAIL_451, RCPT_550 = On("mail", do=reply(451)), On("rcpt", do=reply(550))
RCPT_250, DATA_354 = On("rcpt", do=reply(250)), On("data", do=reply(354))
CLOSING = stall(SHORT, reply(421, "4.7.0 limit reached", close=True))


@pytest.mark.parametrize(
    ("script", "chunking", "phase", "decided"),
    [
        ([RCPT_550, On("data", do=reply(451))], False, Phase.RCPT, 550),
        ([RCPT_550, On("data", do=drop())], False, Phase.RCPT, 550),
        ([RCPT_550, On("data", do=reply(421))], False, Phase.RCPT, 550),
        ([RCPT_550, On("data", do=raw(b"?\r\n"))], False, Phase.RCPT, 550),
        ([RCPT_550, On("bdat", do=reply(250))], True, Phase.RCPT, 550),
        # A lone dot might deliver the message, as the complete chunk may.
        ([MAIL_451, RCPT_250, DATA_354], False, Phase.MAIL, 451),
        ([MAIL_451, RCPT_250, On("bdat", do=reply(250))], True, Phase.COMMIT, None),
        # Before the end of the message, success does not mean that it was taken.
        (twice(b"451 4.3.0 oops\r\n"), False, Phase.CONTENT, 451),
        (twice(b"250 ok\r\n"), False, Phase.CONTENT, None),
        (twice(b"421 bye\r\n"), False, Phase.CONTENT, None),
        # All of the chunk was written, but no recipient was accepted.
        ([On("mail", do=CLOSING)], True, Phase.MAIL, None),
        ([On("rcpt", do=CLOSING)], True, Phase.RCPT, None),
    ],
)
def test_the_first_refusal_decides_unless_the_message_may_have_been_taken(
    script: list[On], chunking: Any, phase: Phase, decided: int | None
) -> None:
    with FaultServer(script, features=CHUNKING) as server:
        one = transaction("1@x.test", "2@x.test")
        send_one(server, one, chunking=chunking)
        assert one.outcome is (UNKNOWN if phase is Phase.COMMIT else NOT_SENT)
        assert (code(one), one.phase) == (decided, phase)
        assert (one.failure is None) is (one.reply is not None)
        assert set(server.delivered) <= set(one.accepted)
        assert phase is not Phase.CONTENT or b"\r\n.\r\n" not in server.received[1]


@pytest.mark.parametrize("status", [250, 554])
def test_a_server_that_waits_for_content_without_recipients_gets_a_lone_dot(
    status: int,
) -> None:
    script = [
        On("rcpt", message=1, do=reply(550)),
        On("data", message=1, do=reply(354)),
        On("dot", message=1, do=reply(status)),
    ]
    with FaultServer(script) as server, session(server) as held:
        one, two = window("--")
        held.send(one)
        assert (one.outcome, one.phase) == (NOT_SENT, Phase.RCPT)
        assert (held.reusable, held.needs_rset, held.alive()) == (True, True, True)
        held.send(two)
        assert two.outcome is SENT
        assert server.delivered == {"2@x.test": 1}
        assert b"DATA\r\n.\r\nRSET\r\nMAIL" in server.received[1]


@pytest.mark.parametrize("do", cases(refused=reply(500), drop=drop(), odd=reply(354)))
def test_a_failed_rset_closes_the_connection(do: Action) -> None:
    with FaultServer([On("rset", do=do)]) as server, session(server) as held:
        held.session.needs_rset = True
        held.send(one := transaction())
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, OSError)
        assert held.closed


# -- refusals that announce a loss -----------------------------------------------------


@PIPELINING
@pytest.mark.parametrize("status", [451, 421, 554])
@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
def test_x42_is_a_loss_when_the_server_closes_the_connection(
    step: Any, status: int, pipelining: Any
) -> None:
    leave = reply(status, f"{status // 100}.4.2 Timeout", close=True)
    with FaultServer([On(step, do=leave)]) as server:
        one = transaction("1@x.test", "2@x.test")
        send_one(server, one, pipelining=pipelining)
        assert (one.outcome, one.reply) == (NOT_SENT, None)
        assert isinstance(one.failure, OSError)
        assert one.not_refused == ("1@x.test", "2@x.test")


@BY_DATA_AND_BDAT
@pytest.mark.parametrize(
    ("step", "refusal", "closed"),
    [
        ("mail", "451 4.4.2 idle", True),
        ("mail", "421 4.4.2 idle", True),
        ("mail", "554 5.4.2 idle", True),
        ("rset", "451 4.4.2 idle", True),
        ("rcpt", "451 4.4.2 no answer", False),
        ("mail", "451 4.4.1 no answer", False),
    ],
)
def test_x42_as_the_first_reply_after_idling_closes_the_connection(
    step: Any, refusal: str, closed: Any, chunking: Any
) -> None:
    leave = reply(int(refusal[:3]), refusal[4:])
    with FaultServer([On(step, do=leave)], features=CHUNKING) as server:
        with session(server, chunking=chunking) as held:
            held.session.needs_rset = step == "rset"
            one = transaction()
            one.after_idle = True
            held.send(one)
            assert held.closed is closed
        assert one.outcome is NOT_SENT
        assert (one.reply is None) is closed
        if closed:
            assert isinstance(one.failure, ServerClosing)
            assert str(one.failure.reply) == refusal


# -- invalid replies and losses --------------------------------------------------------

INVALID = {
    "no code": raw(b"850 x\r\n"),
    "two codes": raw(b"250-a\r\n550 b\r\n"),
    "cut": raw(b"250-a\r\n", close=True),
    "endless": endless(b"250-more\r\n"),
    "221": reply(221, "bye"),
    "fin": drop(),
    "rst": drop(rst=True),
    "hang": hang(),
}


@pytest.mark.parametrize(
    ("step", "options"),
    [
        *((step, {}) for step in STEPS),
        *((step, {"pipelining": False}) for step in ("mail", "rcpt", "data")),
        ("dot", {"chunking": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("fault", [*INVALID, "of another command"])
def test_without_a_valid_reply_a_message_is_not_sent_or_from_its_end_on_unknown(
    step: Any, options: dict[str, bool], fault: str
) -> None:
    do = INVALID.get(fault) or reply(250 if step == "data" else 354)
    limits = {"timeout": SHORT, "final_reply_timeout": SHORT}
    with FaultServer([On(step, do=do)], features=CHUNKING) as server:
        one = send_one(server, transaction(), **limits, **options)
        assert one.outcome is (UNKNOWN if step == "dot" else NOT_SENT)
        assert (one.phase, one.reply) == (STEPS[step], None)
        assert isinstance(one.failure, OSError)
        assert "unexpected reply to " in str(one.failure) or fault in INVALID
        assert server.wait_for(lambda: server.open_connections == 0)
        assert step == "dot" or b"Subject" not in server.received[1]


@pytest.mark.parametrize(
    "do",
    cases(reply=raw(b"250 spurious\r\n"), closing=raw(b"421 idle\r\n"), fin=drop()),
)
def test_nothing_is_sent_after_input_while_idle(do: Action) -> None:
    with FaultServer() as server, session(server) as held:
        one, two = window("--")
        held.send(one)
        assert held.alive()
        server.act_on_all(do)
        assert not held.alive()
        held.send(two)
        assert two.outcome is NOT_SENT
        assert isinstance(two.failure, ConnectionResetError)
        assert held.closed
        assert spoken(server).count("MAIL") == 1


def test_a_refusal_before_a_reset_counts_though_writing_fails() -> None:
    refuse_and_reset = chain(raw(b"354 go\r\n552 5.3.4 too big\r\n"), drop(rst=True))
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
        assert (one.phase, code(one), one.failure) == (Phase.CONTENT, 552, None)


@pytest.mark.parametrize("close", cases(stays=False, leaves=True))
def test_a_refusal_while_the_content_is_written_stops_the_writing(close: Any) -> None:
    refused = reply(451, "4.3.0 enough", close=close)
    early = On("body", after_bytes=50_000, do=refused)
    with FaultServer([early], rcvbuf=4096) as server:
        one = send_one(server, transaction(content=BIG * 3), timeout=5)
        assert one.outcome is NOT_SENT
        if one.reply is None:
            # The kernel may drop what a server said when it resets the connection.
            assert close
            assert isinstance(one.failure, OSError)
        else:
            assert (one.phase, code(one)) == (Phase.CONTENT, 451)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert len(server.received[1]) < len(BIG) * 2


@BY_DATA_AND_BDAT
@pytest.mark.parametrize(
    "do", cases(fin=drop(), rst=drop(rst=True), hang=hang(), closing=reply(421))
)
def test_a_loss_while_the_content_is_written_is_not_sent(
    do: Action, chunking: Any
) -> None:
    early = On("body", after_bytes=50_000, do=do)
    with FaultServer([early], features=CHUNKING, rcvbuf=4096) as server:
        one = transaction(content=BIG)
        send_one(server, one, timeout=SHORT, chunking=chunking)
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, OSError)
        assert chunking or one.phase is Phase.CONTENT
        assert server.deliveries == []


@BY_DATA_AND_BDAT
@pytest.mark.parametrize(
    ("do", "outcome"),
    [
        (drop(after=True), SENT),
        (accept_then(raw(b"250 ok\r\n250 ok\r\n")), SENT),
        (reply(421, "4.3.2 shutting down"), NOT_SENT),
    ],
    ids=["lost", "extra reply", "421"],
)
def test_the_final_reply_decides_for_its_message_only(
    do: Action, outcome: Outcome, chunking: Any
) -> None:
    with FaultServer([On("dot", message=1, do=do)], features=CHUNKING) as server:
        one, two = window("--")
        with session(server, chunking=chunking) as held:
            held.send_all([one, two])
            assert held.closed
        assert (one.outcome, one.failure) == (outcome, None)
        assert code(one) == (250 if outcome is SENT else 421)
        # A chunk may be on its way before the loss is seen.
        assert two.outcome is NOT_SENT or (chunking and two.outcome is UNKNOWN)
        assert two.reply is None
        assert server.delivered == ({"1@x.test": 1} if outcome is SENT else {})


# -- time ------------------------------------------------------------------------------


def test_the_final_reply_has_a_timeout_of_its_own() -> None:
    with FaultServer([On("dot", do=stall(2 * SHORT))]) as server:
        one = send_one(server, transaction(), timeout=SHORT, final_reply_timeout=5)
        assert one.outcome is SENT


@pytest.mark.parametrize("step", STEPS)
def test_the_deadline_of_a_message_ends_any_phase(step: Any) -> None:
    with FaultServer([On(step, do=hang())]) as server:
        began = time.monotonic()
        one = send_one(server, transaction(seconds=SHORT), timeout=30)
        assert time.monotonic() - began < 5
        assert one.outcome is (UNKNOWN if step == "dot" else NOT_SENT)
        assert isinstance(one.failure, TimeoutError)


def test_a_message_whose_time_has_passed_is_not_committed() -> None:
    relay = MemoryRelay(Script(), knows_keys=False)
    one = transaction(seconds=-1.0)
    config = backend_config({"api_token": "t"}).relay
    # The stream in memory takes no time, so the commit point is the first to check.
    relay.connect(RelayState()).send(one, config=config)
    assert (one.outcome, one.phase) == (NOT_SENT, Phase.CONTENT)
    assert isinstance(one.failure, TimeoutError)
    assert not relay.delivered


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("step", "outcome", "chunking"),
    [
        ("mail", NOT_SENT, False),
        ("data", NOT_SENT, False),
        ("dot", UNKNOWN, False),
        ("dot", UNKNOWN, True),
    ],
)
def test_an_interrupt_propagates_and_leaves_a_certain_outcome(
    step: Any, outcome: Outcome, chunking: Any, kind: type[BaseException]
) -> None:
    with FaultServer(features=CHUNKING) as server, interruptible(kind) as strike:
        server.script.append(On(step, do=strike_and_wait(strike)))
        with session(server, chunking=chunking) as held:
            one, two = window("--")
            with pytest.raises(kind):
                held.send(one, [two])
            assert held.closed
            assert outcomes([one, two]) == [outcome, NOT_SENT]
        assert server.wait_for(lambda: server.open_connections == 0)
