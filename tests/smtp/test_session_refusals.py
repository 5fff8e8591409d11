"""What a refusal means for its message, and for the next one on the same session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.results import Phase
from django_lettermint.smtp import ServerClosing
from tests.faultserver import (
    FaultServer,
    On,
    drop,
    raw,
    reply,
)
from tests.sending import (
    cases,
    session,
    spoken,
    transaction,
)
from tests.smtp.sessions import (
    CHUNKING,
    NOT_SENT,
    SENT,
    outcomes,
    send_one,
)

if TYPE_CHECKING:
    from tests.faults import Action


# -- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize("pipelining", cases(on=True, off=False))
@pytest.mark.parametrize("code", [451, 550])
@pytest.mark.parametrize(
    ("phase", "ends_at"),
    [
        ("mail", Phase.MAIL),
        ("rcpt", Phase.RCPT),
        ("data", Phase.DATA),
        ("dot", Phase.COMMIT),
    ],
)
def test_the_next_message_is_sent_after_a_refused_one_and_rset(
    phase: Any, ends_at: Phase, code: int, pipelining: Any
) -> None:
    with FaultServer([On(phase, message=1, do=reply(code, "5.0.0 no"))]) as server:
        with session(server, pipelining=pipelining) as held:
            one, two = transaction("1@x.test"), transaction("2@x.test")
            held.send(one)
            assert one.outcome is NOT_SENT
            assert one.phase is ends_at
            assert one.reply
            assert one.reply.code == code
            assert one.failure is None
            assert one.permanent_failure is (code >= 500)
            assert (held.needs_rset, held.reusable) == (True, True)
            held.send(two)
            assert two.outcome is SENT
            assert (held.needs_rset, held.reusable) == (False, True)
        assert server.delivered == {"2@x.test": 1}
        assert spoken(server).count("RSET") == 1
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
@pytest.mark.parametrize("code", [451, 550])
def test_a_refused_message_does_not_affect_pipelined_neighbours(
    phase: Any, code: int
) -> None:
    with FaultServer([On(phase, message=2, do=reply(code))]) as server:
        with session(server) as held:
            several = [transaction(f"{number}@x.test") for number in (1, 2, 3, 4)]
            held.send_all(several)
            assert outcomes(several) == [SENT, NOT_SENT, SENT, SENT]
            assert several[1].reply
            assert several[1].reply.code == code
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1, "4@x.test": 1}
        assert server.connections == 1
        assert server.violations == []


def test_the_message_is_sent_to_the_recipients_that_are_accepted() -> None:
    with FaultServer([On("rcpt", match="2@", do=reply(450))]) as server:
        one = send_one(server, transaction("1@x.test", "2@x.test", "3@x.test"))
        assert one.outcome is SENT
        assert one.accepted == one.not_refused == ("1@x.test", "3@x.test")
        assert one.replies["2@x.test"].code == 450
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}


@pytest.mark.parametrize("code", [251, 252])
def test_every_positive_reply_accepts_a_recipient(code: int) -> None:
    with FaultServer([On("rcpt", do=reply(code))]) as server:
        assert send_one(server, transaction()).outcome is SENT


@pytest.mark.parametrize("code", [450, 550])
def test_replies_after_a_refused_sender_do_not_speak_of_recipients(code: int) -> None:
    with FaultServer([On("mail", do=reply(code, "5.1.0 no"))]) as server:
        one = send_one(server, transaction("1@x.test", "2@x.test"))
        assert (one.phase, one.reply and one.reply.code) == (Phase.MAIL, code)
        assert one.replies == {}
        assert one.not_refused == ("1@x.test", "2@x.test")


def test_the_reply_to_data_after_refused_recipients_is_not_the_reason() -> None:
    script = [On("rcpt", do=reply(550, "5.1.1 no")), On("data", do=reply(451))]
    with FaultServer(script) as server:
        one = send_one(server, transaction("1@x.test", "2@x.test"))
        assert (one.phase, one.reply and one.reply.code) == (Phase.RCPT, 550)


@pytest.mark.parametrize(
    "do", cases(drop=drop(), closing=reply(421, close=True), junk=raw(b"?\r\n"))
)
def test_a_loss_after_a_refusal_does_not_change_the_reason(do: Action) -> None:
    script = [On("rcpt", do=reply(550, "5.1.1 no")), On("data", do=do)]
    with FaultServer(script) as server:
        one = send_one(server, transaction("1@x.test", "2@x.test"))
        assert one.outcome is NOT_SENT
        assert (one.phase, one.reply and one.reply.code) == (Phase.RCPT, 550)
        assert one.failure is None
        assert set(one.replies) == {"1@x.test", "2@x.test"}


@pytest.mark.parametrize("order", [(550, 450), (450, 550), (553, 451)])
def test_one_temporary_refusal_makes_the_message_temporarily_refused(
    order: tuple[int, int],
) -> None:
    script = [
        On("rcpt", match="1@", do=reply(order[0])),
        On("rcpt", do=reply(order[1])),
    ]
    with FaultServer(script) as server:
        one = send_one(server, transaction("1@x.test", "2@x.test"))
        assert (one.reply and one.reply.code) == min(order)
        assert not one.permanent_failure


@pytest.mark.parametrize("code", [250, 554])
def test_a_server_that_waits_for_content_without_recipients_gets_a_lone_dot(
    code: int,
) -> None:
    script = [
        On("rcpt", message=1, do=reply(550)),
        On("data", message=1, do=reply(354)),
        On("dot", message=1, do=reply(code)),
    ]
    with FaultServer(script) as server, session(server) as held:
        several = [transaction("1@x.test"), transaction("2@x.test")]
        held.send_all(several)
        assert outcomes(several) == [NOT_SENT, SENT]
        assert several[0].phase is Phase.RCPT
        assert server.delivered == {"2@x.test": 1}
        assert b"DATA\r\n.\r\nRSET\r\nMAIL" in server.received[1]
        assert server.connections == 1


def test_a_session_is_usable_after_a_lone_dot() -> None:
    script = [On("rcpt", do=reply(550)), On("data", do=reply(354))]
    with FaultServer(script) as server, session(server) as held:
        held.send(transaction())
        assert (held.reusable, held.needs_rset, held.alive()) == (True, True, True)


def test_no_dot_is_sent_to_a_server_that_waits_for_content_after_refusing_mail() -> (
    None
):
    script = [
        On("mail", do=reply(451)),
        On("rcpt", do=reply(250)),
        On("data", do=reply(354)),
    ]
    with FaultServer(script) as server:
        one = send_one(server, transaction())
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.MAIL
        assert server.wait_for(lambda: server.open_connections == 0)
        assert server.deliveries == []


@pytest.mark.parametrize(
    "do", cases(refused=reply(500), drop=drop(), closing=reply(421), odd=reply(354))
)
def test_a_failed_rset_closes_the_connection(do: Action) -> None:
    script = [On("rcpt", message=1, do=reply(550)), On("rset", do=do)]
    with FaultServer(script) as server, session(server) as held:
        held.send(transaction("1@x.test"))
        two = transaction("2@x.test")
        held.send(two)
        assert two.outcome is NOT_SENT
        assert isinstance(two.failure, OSError)
        assert held.closed
        assert server.delivered == {}


# -- refusals by X.4.2 -----------------------------------------------------------------


@pytest.mark.parametrize("pipelining", cases(on=True, off=False))
@pytest.mark.parametrize("text", ["451 4.4.2 no answer", "554 5.4.2 no answer"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_recipient_whose_server_does_not_answer_is_refused_alone(
    number: int, text: str, pipelining: Any
) -> None:
    refused = On("rcpt", match=f"{number}@", do=raw(text.encode() + b"\r\n"))
    with FaultServer([refused]) as server:
        one = transaction("1@x.test", "2@x.test", "3@x.test")
        with session(server, pipelining=pipelining) as held:
            held.send(one)
            assert held.reusable
        assert one.outcome is SENT
        assert str(one.replies[f"{number}@x.test"]) == text
        assert len(one.accepted) == 2
        assert set(server.delivered) == set(one.accepted)
        assert server.connections == 1


@pytest.mark.parametrize("pipelining", cases(on=True, off=False))
@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
def test_x42_is_a_refusal_while_the_connection_stays_open(
    phase: Any, pipelining: Any
) -> None:
    with FaultServer([On(phase, times=1, do=reply(451, "4.4.2 no answer"))]) as server:
        with session(server, pipelining=pipelining) as held:
            one, two = transaction("1@x.test"), transaction("2@x.test")
            held.send_all([one, two])
            assert outcomes([one, two]) == [NOT_SENT, SENT]
        assert (one.reply and one.reply.code) == 451
        assert one.failure is None
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize("code", [451, 421, 554])
@pytest.mark.parametrize("phase", ["mail", "rcpt"])
def test_x42_is_a_loss_when_the_server_closes_the_connection(
    phase: Any, code: int
) -> None:
    leave = reply(code, f"{code // 100}.4.2 Timeout - closing connection", close=True)
    with FaultServer([On(phase, do=leave)]) as server:
        one = send_one(server, transaction("1@x.test", "2@x.test"))
        assert one.outcome is NOT_SENT
        assert one.reply is None
        assert isinstance(one.failure, OSError)
        assert one.not_refused == ("1@x.test", "2@x.test")


def test_only_refusals_by_x42_are_forgotten_when_the_connection_is_lost() -> None:
    script = [
        On("rcpt", match="1@", do=reply(550, "5.1.1 unknown")),
        On("rcpt", match="2@", do=reply(250)),
        On("rcpt", match="3@", do=reply(451, "4.4.2 closing", close=True)),
    ]
    with FaultServer(script) as server:
        one = send_one(server, transaction("1@x.test", "2@x.test", "3@x.test"))
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, OSError)
        assert one.not_refused == ("2@x.test", "3@x.test")


@pytest.mark.parametrize("chunking", cases(data=False, bdat=True))
@pytest.mark.parametrize("code", [451, 421, 554])
def test_x42_as_the_first_reply_after_idling_closes_the_connection(
    code: int, chunking: Any
) -> None:
    leave = reply(code, f"{code // 100}.4.2 Timeout - closing connection")
    with FaultServer([On("mail", do=leave)], features=CHUNKING) as server:
        one = transaction()
        one.after_idle = True
        with session(server, chunking=chunking) as held:
            held.send(one)
            assert held.closed
        assert one.outcome is NOT_SENT
        assert one.reply is None
        assert isinstance(one.failure, ServerClosing)
        assert one.failure.reply.code == code


@pytest.mark.parametrize(
    ("phase", "text"), [("rcpt", "4.4.2 no answer"), ("mail", "4.4.1 no answer")]
)
def test_another_refusal_after_idling_leaves_the_connection(
    phase: Any, text: str
) -> None:
    with FaultServer([On(phase, do=reply(451, text))]) as server:
        one = transaction()
        one.after_idle = True
        with session(server) as held:
            held.send(one)
            assert held.reusable
        assert (one.reply and one.reply.code) == 451


def test_x42_to_the_rset_after_idling_closes_the_connection() -> None:
    script = [
        On("rcpt", message=1, do=reply(550)),
        On("rset", do=reply(451, "4.4.2 Timeout - closing connection")),
    ]
    with FaultServer(script) as server, session(server) as held:
        held.send(transaction("1@x.test"))
        two = transaction("2@x.test")
        two.after_idle = True
        held.send(two)
        assert isinstance(two.failure, ServerClosing)
        assert held.closed
