"""One session: which messages it sends, what it writes at once, and how it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.results import Phase
from django_lettermint.smtp import RelayState
from tests.faultserver import (
    FEATURES,
    FaultServer,
    On,
    drop,
    hang,
    normal,
    raw,
    reply,
    stall,
)
from tests.sending import SHORT, cases, relay, session, spoken, transaction
from tests.smtp.helpers import (
    BIG,
    BY_DATA_AND_BDAT,
    CHUNKING,
    NOT_SENT,
    SENT,
    connect_with,
    outcomes,
    received_at,
    send_one,
    window,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults import Action

BOB, CID = "bob@example.org", "cid@example.org"


def nothing(relay: RelayState) -> None:
    """Note nothing of the relay."""


# -- a message -------------------------------------------------------------------------


@pytest.mark.parametrize("content", cases(small=b"Subject: x\r\n\r\nHi\r\n", big=BIG))
def test_a_message_arrives_unchanged(content: bytes) -> None:
    with FaultServer(rcvbuf=4096) as server:
        one = transaction(BOB, CID, repeatable=True, content=content)
        send_one(server, one)
        assert (one.outcome, one.phase) == (SENT, Phase.DONE)
        assert str(one.reply) == "250 2.0.0 queued"
        (delivery,) = server.deliveries
        assert delivery.recipients == (BOB, CID)
        assert delivery.key == f"key of {BOB}"
        assert delivery.content == one.envelope.data
        assert delivery.parameters == f"SIZE={len(one.envelope.data)}"
        assert server.violations == []


LINES = st.lists(
    st.binary(max_size=5).map(lambda raw: raw.translate(None, b"\r\n\0")), max_size=8
)


def test_lines_that_begin_with_dots_arrive_unchanged() -> None:
    with FaultServer() as server, session(server) as held:

        @settings(suppress_health_check=[HealthCheck.differing_executors])
        @given(LINES)
        @example([b".", b"..", b"", b".", b"x."])
        @example([b".MAIL FROM:<x>", b"."])
        def round_trip(lines: list[bytes]) -> None:
            # The name of a field may begin with a dot, too.
            content = b".Name: x\r\nSubject: Hi\r\n\r\n" + b"".join(
                line + b"\r\n" for line in lines
            )
            one = transaction(content=content)
            held.send(one)
            assert one.outcome is SENT
            assert server.deliveries.pop().content == content

        round_trip()
        assert server.violations == []
        assert server.connections == 1


# -- what the relay can take -----------------------------------------------------------

EIGHT_BIT = (
    "Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    "Content-Transfer-Encoding: 8bit\r\n\r\n\u00e9\r\n"
).encode()
UMLAUT = "b\u00f6b@example.org"


@pytest.mark.parametrize(
    ("features", "traits", "reason"),
    [
        (["SIZE 299"], {"content": b"x" * 300}, "the relay accepts 299"),
        (without("SMTPUTF8"), {"smtputf8": True}, "does not offer SMTPUTF8"),
        (without("8BITMIME"), {"content": EIGHT_BIT}, "no longer offers 8BITMIME"),
    ],
    ids=["size", "smtputf8", "8bitmime, frozen"],
)
def test_what_the_relay_cannot_take_is_not_sent(
    features: list[str], traits: dict[str, Any], reason: str
) -> None:
    one = transaction(UMLAUT, **traits)
    one.frozen = True
    with FaultServer(features=features) as server, session(server) as held:
        held.send(one)
        assert (one.outcome, one.phase) == (NOT_SENT, Phase.MESSAGE)
        assert isinstance(one.failure, LettermintInvalidMessage)
        assert reason in str(one.failure)
        assert one.permanent_failure
        assert spoken(server) == []
        held.send(two := transaction(content=b"Subject: x\r\n\r\n"))
        assert two.outcome is SENT


@pytest.mark.parametrize("limit", ["", "0", "many", "9" * 5000, "equal"])
def test_another_size_limit_does_not_stop_the_message(limit: str) -> None:
    one = transaction()
    size = str(one.envelope.size) if limit == "equal" else limit
    with FaultServer(features=(f"SIZE {size}".strip(),)) as server:
        assert send_one(server, one).outcome is SENT
        assert server.deliveries[0].parameters.startswith("SIZE=")


def test_8bit_content_and_a_non_ascii_address_are_declared() -> None:
    with FaultServer() as server:
        one = transaction(UMLAUT, content=EIGHT_BIT, smtputf8=True)
        assert send_one(server, one).outcome is SENT
        (delivery,) = server.deliveries
        assert delivery.parameters.endswith(" BODY=8BITMIME SMTPUTF8")
        assert (delivery.recipients, delivery.content) == ((UMLAUT,), EIGHT_BIT)
        assert server.violations == []


def test_8bit_content_is_encoded_for_a_relay_without_8bitmime() -> None:
    with FaultServer(features=without("8BITMIME")) as server, session(server) as held:
        # The second is pipelined behind the first.
        several = [transaction(content=EIGHT_BIT) for _ in range(2)]
        held.send_all(several)
        assert outcomes(several) == [SENT, SENT]
        for each, delivery in zip(several, server.deliveries, strict=True):
            assert b"=C3=A9" in delivery.content
            assert delivery.parameters == f"SIZE={len(delivery.content)}"
            assert each.envelope.content == delivery.content
        assert server.violations == []


@BY_DATA_AND_BDAT
def test_a_message_that_is_too_large_does_not_affect_its_neighbours(
    chunking: Any,
) -> None:
    features = ("SIZE 200", "PIPELINING", "CHUNKING")
    with FaultServer(features=features) as server:
        with session(server, chunking=chunking) as held:
            several = window("rrr")
            several[1] = transaction("2@x.test", content=b"x" * 300, repeatable=True)
            held.send(several[0], several[1:])
            # Nothing is pending when the one that is too large fails.
            assert held.reusable
            assert several[2].started == 0
            held.send_all(several[1:])
            assert outcomes(several) == [SENT, NOT_SENT, SENT]
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}
        assert server.violations == []


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("LIMITS RCPTMAX=9 MAILMAX=20", 20),
        ("limits mailmax=7", 7),
        ("LIMITS MAILMAX=many", None),
        ("X", None),
    ],
)
def test_the_limit_of_messages_per_connection_is_read(
    limits: str, expected: int | None
) -> None:
    with FaultServer(features=(limits,)) as server, session(server) as held:
        assert held.mail_max == expected


# -- pipelining ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "options", "written"),
    [
        (FEATURES, {}, b"MAIL RCPT RCPT DATA"),
        (without("PIPELINING"), {}, b"MAIL"),
        (FEATURES, {"pipelining": False}, b"MAIL"),
    ],
    ids=["offered", "not offered", "switched off"],
)
def test_with_pipelining_all_commands_are_written_at_once(
    features: tuple[str, ...], options: dict[str, bool], written: bytes
) -> None:
    with FaultServer(features=features) as server:
        received = received_at(server, "mail", transaction(BOB, CID), **options)
        assert [line[:4] for line in received.splitlines()] == written.split()


@pytest.mark.parametrize("local", cases(many_commands="u", many_octets="u" * 60))
def test_commands_are_pipelined_in_groups_that_fit_into_buffers(local: str) -> None:
    recipients = [f"{local}{number}@example.org" for number in range(250)]
    with FaultServer() as server:
        received = received_at(server, "mail", transaction(*recipients))
        assert received.count(b"\r\n") == 100 or 4000 < len(received) <= 4096
        assert received.count(b"\r\n") <= 100
        assert server.deliveries[0].recipients == tuple(recipients)


# 100 commands are a group, so that DATA would be the next one.
@pytest.mark.parametrize(("phase", "count"), [("mail", 250), ("rcpt", 99)])
def test_a_refused_message_ends_after_the_group_of_its_refusal(
    phase: Any, count: int
) -> None:
    with FaultServer([On(phase, do=reply(550))]) as server:
        many = [f"{number}@example.org" for number in range(count)]
        one = send_one(server, transaction(*many))
        assert (one.outcome, one.phase) == (NOT_SENT, phase)
        assert len(spoken(server)) == 100


def test_the_next_message_is_pipelined_behind_the_end_of_the_previous_one() -> None:
    with FaultServer() as server:
        several = window("---")
        received = received_at(server, "dot", *several)
        size = several[1].envelope.size
        assert received.endswith(
            b"\r\n.\r\nMAIL FROM:<ann@example.org> SIZE=%d\r\n"
            b"RCPT TO:<2@x.test>\r\nDATA\r\n" % size
        )
        assert [each.connection_carried for each in several] == [False, True, True]


@BY_DATA_AND_BDAT
@pytest.mark.parametrize(
    ("recipients", "may_follow", "seen", "pipelined"),
    [
        (3, True, nothing, [False, True, True]),
        # A server may look each of them up before it sends the final reply.
        (4, True, nothing, [False, False, True]),
        (1, False, nothing, [False, False, True]),
        (1, True, RelayState.refused_pipelining_past_data, [False] * 3),
        (1, True, RelayState.lost_while_pipelining, [False] * 3),
    ],
    ids=["3-recipients", "4-recipients", "alone", "refused", "lost"],
)
def test_messages_are_pipelined_only_where_that_is_safe(
    recipients: int,
    may_follow: Any,
    seen: Callable[..., object],
    pipelined: list[bool],
    chunking: Any,
) -> None:
    several = window("rrr")
    several[1] = transaction(*"abcd"[:recipients], repeatable=True)
    several[1].may_follow = may_follow
    with FaultServer(features=CHUNKING) as server:
        with session(server, chunking=chunking) as held:
            seen(held.relay)
            held.send_all(several)
            assert held.messages == 3
        assert outcomes(several) == [SENT] * 3
        assert [each.pipelined for each in several] == pipelined
        assert several[0].followed is pipelined[1]
        assert server.violations == []


@pytest.mark.parametrize(
    ("phase", "message", "pipelining", "named"),
    [
        ("mail", 1, True, False),
        ("rcpt", 1, True, True),
        ("rcpt", 1, False, False),
        ("dot", 1, True, False),
        # It shares a write with the end of the first one.
        ("mail", 2, True, True),
    ],
)
def test_a_time_out_names_the_option_pipelining_if_that_may_be_the_reason(
    phase: Any, message: int, pipelining: Any, named: Any
) -> None:
    with FaultServer([On(phase, message=message, do=hang())]) as server:
        several = window("-" * message)
        options = {"timeout": SHORT, "final_reply_timeout": SHORT}
        with session(server, pipelining=pipelining, **options) as held:
            held.send_all(several)
        assert isinstance(several[-1].failure, TimeoutError)
        assert ("set pipelining=False" in str(several[-1].failure)) is named


# -- between messages ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("do", "answers"),
    [
        (normal, True),
        (reply(220), False),
        (raw(b"250 ok\r\n421 bye\r\n"), False),
        (hang(), False),
        (drop(), False),
    ],
    ids=["250", "220", "421-behind", "hang", "lost"],
)
def test_only_250_and_nothing_behind_it_answers_a_ping(
    do: Action, answers: Any
) -> None:
    with FaultServer([On("noop", do=do)]) as server, session(server) as held:
        assert held.ping(5 if answers else SHORT) is answers


@pytest.mark.parametrize(
    ("do", "waits"),
    [(stall(SHORT), True), (hang(), True), (drop(), False), (raw(b"?\r\n"), False)],
    ids=["slow", "hang", "drop", "junk"],
)
def test_quit_waits_for_its_reply_but_not_for_long(do: Action, waits: Any) -> None:
    with FaultServer([On("quit", do=do)]) as server, session(server) as held:
        began = time.monotonic()
        held.send_quit()
        held.wait_closed(began + 2 * SHORT)
        took = time.monotonic() - began
        assert took < 5
        assert not waits or took > SHORT * 0.9
        assert held.closed
        assert spoken(server) == ["QUIT"]


def test_a_closed_session_does_not_send_quit() -> None:
    with FaultServer() as server, session(server) as held:
        held.close()
        held.send_quit()
        held.wait_closed(time.monotonic() + 5)
        assert held.closed
        assert not held.alive()
        assert spoken(server) == []


def test_each_command_and_its_reply_are_traced() -> None:
    traced: list[tuple[str, str]] = []
    with FaultServer() as server:
        config = relay(server)
        made = connect_with(config, trace=lambda *step: traced.append(step))
        traced.clear()
        made.send(transaction(), config=config)
        made.close()
    steps = [step.split(":")[0] for step, _ in traced]
    assert steps == ["MAIL FROM", "RCPT TO", "DATA", "."]
    assert traced[-1][1] == "250 2.0.0 queued"
