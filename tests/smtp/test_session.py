"""One session: which messages it sends, what it writes at once, and how it ends."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.results import Phase
from django_lettermint.smtp import RelayState, connect
from tests.faultserver import (
    FEATURES,
    FaultServer,
    On,
    drop,
    gate,
    hang,
    raw,
    reply,
    stall,
)
from tests.sending import (
    SHORT,
    cases,
    relay,
    session,
    spoken,
    transaction,
)
from tests.smtp.sessions import (
    BOB,
    CHUNKING,
    NOT_SENT,
    SENT,
    outcomes,
    received_at,
    send_one,
    without,
)

if TYPE_CHECKING:
    from tests.faults import Action


# -- a plain message -------------------------------------------------------------------


@pytest.mark.parametrize("pipelining", cases(on=True, off=False))
def test_a_message_arrives_unchanged(pipelining: Any) -> None:
    with FaultServer() as server:
        one = send_one(
            server, transaction(BOB, "cid@example.org"), pipelining=pipelining
        )
        assert one.outcome is SENT
        assert one.phase is Phase.DONE
        assert one.reply
        assert one.reply.code == 250
        (delivery,) = server.deliveries
        assert delivery.recipients == (BOB, "cid@example.org")
        assert delivery.content == one.envelope.content
        assert delivery.parameters == f"SIZE={one.envelope.size}"
        assert server.violations == []


def test_a_null_sender_is_sent_as_an_empty_path() -> None:
    with FaultServer() as server:
        one = transaction()
        one.envelope = replace(one.envelope, mail_from="")
        assert send_one(server, one).outcome is SENT
        assert server.deliveries[0].mail_from == ""


def test_the_idempotency_key_is_the_first_line_of_the_content() -> None:
    with FaultServer() as server:
        one = send_one(server, transaction(repeatable=True))
        (delivery,) = server.deliveries
        assert delivery.key == f"key of {BOB}"
        assert delivery.content == one.envelope.data
        assert delivery.parameters == f"SIZE={len(one.envelope.data)}"


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


def test_chunks_are_not_dot_stuffed() -> None:
    content = b".\r\n..\r\n\r\n.\r\n"
    with FaultServer(features=CHUNKING) as server:
        one = send_one(server, transaction(content=content), chunking=True)
        assert one.outcome is SENT
        assert server.deliveries[0].content == content


# -- what the relay can take -----------------------------------------------------------


def test_a_message_beyond_the_size_limit_is_not_sent() -> None:
    with (
        FaultServer(features=("SIZE 30", "PIPELINING")) as server,
        session(server) as held,
    ):
        one = transaction()
        held.send(one)
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.MESSAGE
        assert isinstance(one.failure, LettermintInvalidMessage)
        assert "the relay accepts 30" in str(one.failure)
        assert held.reusable
        assert spoken(server) == []
        held.send(two := transaction(content=b"Subject: x\r\n\r\n"))
        assert two.outcome is SENT


@pytest.mark.parametrize("limit", ["SIZE", "SIZE 0", "SIZE many", f"SIZE {'9' * 5000}"])
def test_an_unusable_size_limit_is_ignored(limit: str) -> None:
    with FaultServer(features=(limit,)) as server:
        assert send_one(server, transaction()).outcome is SENT
        assert server.deliveries[0].parameters.startswith("SIZE=")


EIGHT_BIT = (
    "Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    "Content-Transfer-Encoding: 8bit\r\n\r\n\u00e9\r\n"
).encode()


def test_8bit_content_is_declared() -> None:
    with FaultServer() as server:
        assert send_one(server, transaction(content=EIGHT_BIT)).outcome is SENT
        assert server.deliveries[0].parameters.endswith(" BODY=8BITMIME")
        assert server.deliveries[0].content == EIGHT_BIT
        assert server.violations == []


@pytest.mark.parametrize("count", [1, 3])
def test_8bit_content_is_encoded_for_a_relay_without_8bitmime(count: int) -> None:
    with FaultServer(features=without("8BITMIME")) as server, session(server) as held:
        # The second and third are pipelined behind the one before.
        several = [transaction(content=EIGHT_BIT) for _ in range(count)]
        held.send_all(several)
        assert outcomes(several) == [SENT] * count
        for each, delivery in zip(several, server.deliveries, strict=True):
            assert b"=C3=A9" in delivery.content
            assert delivery.parameters == f"SIZE={len(delivery.content)}"
            assert each.envelope.content == delivery.content
        assert server.violations == []


def test_a_frozen_message_is_not_encoded_again() -> None:
    with FaultServer(features=without("8BITMIME")) as server:
        one = transaction(content=EIGHT_BIT)
        one.frozen = True
        send_one(server, one)
        assert one.outcome is NOT_SENT
        assert one.permanent_failure
        assert "no longer offers 8BITMIME" in str(one.failure)
        assert spoken(server) == []


def test_a_non_ascii_address_needs_smtputf8() -> None:
    bob = "b\u00f6b@example.org"
    with FaultServer() as server:
        assert send_one(server, transaction(bob, smtputf8=True)).outcome is SENT
        assert server.deliveries[0].recipients == (bob,)
        assert server.deliveries[0].parameters.endswith(" SMTPUTF8")
        assert server.violations == []
    with FaultServer(features=without("SMTPUTF8")) as server:
        one = send_one(server, transaction(bob, smtputf8=True))
        assert one.outcome is NOT_SENT
        assert "SMTPUTF8" in str(one.failure)
        assert spoken(server) == []


def test_a_message_that_is_too_large_does_not_affect_its_neighbours() -> None:
    with FaultServer(features=("SIZE 60", "PIPELINING")) as server:
        with session(server) as held:
            several = [
                transaction("1@x.test"),
                transaction("2@x.test", content=b"x" * 99 + b"\r\n"),
                transaction("3@x.test"),
            ]
            held.send_all(several)
            assert outcomes(several) == [SENT, NOT_SENT, SENT]
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}
        assert server.violations == []


def test_the_limit_of_messages_per_connection_is_read() -> None:
    for limits, expected in [
        ("LIMITS RCPTMAX=9 MAILMAX=20", 20),
        ("LIMITS MAILMAX=many", None),
        ("LIMITS MAILMAX", None),
        ("X", None),
    ]:
        with FaultServer(features=(limits,)) as server, session(server) as held:
            assert held.mail_max == expected


# -- pipelining ------------------------------------------------------------------------


def test_with_pipelining_all_commands_are_written_at_once() -> None:
    with FaultServer() as server:
        received, one = received_at(server, "mail")
        assert received.endswith(b"RCPT TO:<cid@example.org>\r\nDATA\r\n")
        assert one.outcome is SENT
        assert server.violations == []


@pytest.mark.parametrize(
    ("features", "options"),
    [(without("PIPELINING"), {}), (FEATURES, {"pipelining": False})],
    ids=["not offered", "switched off"],
)
def test_without_pipelining_each_command_waits_for_the_reply(
    features: tuple[str, ...], options: dict[str, bool]
) -> None:
    with FaultServer(features=features) as server:
        received, one = received_at(server, "mail", **options)
        assert received.count(b"\r\n") == 1
        assert one.outcome is SENT
        assert server.violations == []


@pytest.mark.parametrize(
    "local", cases(many_commands="u", many_octets="u" * 60), ids=None
)
def test_commands_are_pipelined_in_groups_that_fit_into_buffers(local: str) -> None:
    everybody = [f"{local}{number}@example.org" for number in range(250)]
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("mail", do=gate(release, reached))]) as server:
        with session(server) as held:
            one = transaction(*everybody)
            sender = threading.Thread(target=held.send, args=(one,))
            sender.start()
            assert reached.wait(5)
            received = server.received[1].partition(b"MAIL")[2]
            release.set()
            sender.join(5)
        assert received.count(b"\r\n") <= 100
        assert 3900 - 80 * 24 < len(received) < 4096
        assert one.outcome is SENT
        assert server.deliveries[0].recipients == tuple(everybody)
        assert server.violations == []


def test_a_refused_sender_ends_the_message_after_the_first_group() -> None:
    everybody = [f"{number}@example.org" for number in range(250)]
    with FaultServer([On("mail", do=reply(550))]) as server:
        one = send_one(server, transaction(*everybody))
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.MAIL
        assert len(spoken(server)) == 100


def test_data_is_not_sent_in_a_group_of_its_own_without_recipients() -> None:
    everybody = [f"{number}@example.org" for number in range(99)]
    with FaultServer([On("rcpt", do=reply(550))]) as server:
        # 100 commands make a group, so that DATA would be the next one.
        one = send_one(server, transaction(*everybody))
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.RCPT
        assert "DATA" not in spoken(server)


def test_the_next_message_is_pipelined_behind_the_end_of_the_previous_one() -> None:
    release, reached = threading.Event(), threading.Event()
    script = [On("dot", message=1, do=gate(release, reached))]
    with FaultServer(script) as server, session(server) as held:
        several = [
            transaction("1@x.test"),
            transaction("2@x.test"),
            transaction("3@x.test"),
        ]
        sender = threading.Thread(target=held.send_all, args=(several,))
        sender.start()
        assert reached.wait(5)
        received = server.received[1]
        assert received.endswith(
            b"\r\n.\r\nMAIL FROM:<ann@example.org> SIZE=30\r\nRCPT TO:<2@x.test>\r\nDATA\r\n".replace(
                b"30", b"%d" % several[1].envelope.size
            )
        )
        release.set()
        sender.join(5)
        assert outcomes(several) == [SENT] * 3
        assert held.messages == 3
        assert server.delivered == {"1@x.test": 1, "2@x.test": 1, "3@x.test": 1}
        assert server.violations == []


def test_a_message_of_several_groups_is_not_pipelined_behind_another() -> None:
    everybody = [f"{number}@x.test" for number in range(120)]
    with FaultServer() as server, session(server) as held:
        several = [
            transaction("one@x.test"),
            transaction(*everybody),
            transaction("two@x.test"),
        ]
        held.send_all(several)
        assert outcomes(several) == [SENT] * 3
        assert not several[1].pipelined
        assert several[2].pipelined
        assert server.violations == []


@pytest.mark.parametrize("chunking", cases(data=False, bdat=True))
@pytest.mark.parametrize(
    ("recipients", "pipelined"), [(1, True), (3, True), (4, False)]
)
def test_at_most_three_recipients_are_pipelined_behind_another_message(
    recipients: int, pipelined: Any, chunking: Any
) -> None:
    # A server may look each of them up before it sends the final reply.
    many = [f"{number}@x.test" for number in range(recipients)]
    with FaultServer(features=CHUNKING) as server:
        several = [
            transaction("first@x.test", repeatable=True),
            transaction(*many, repeatable=True),
        ]
        with session(server, chunking=chunking) as held:
            held.send_all(several)
        assert outcomes(several) == [SENT, SENT]
        assert several[1].pipelined is several[0].followed is pipelined
        assert server.violations == []


@pytest.mark.parametrize("chunking", cases(data=False, bdat=True))
@pytest.mark.parametrize("why", ["refused", "lost", "alone"])
def test_nothing_is_pipelined_behind_a_message_against_advice(
    why: str, chunking: Any
) -> None:
    several = [transaction(f"{number}@x.test", repeatable=True) for number in range(3)]
    with FaultServer(features=CHUNKING) as server:
        with session(server, chunking=chunking) as held:
            if why == "refused":
                held.relay.refused_pipelining_past_data()
            elif why == "lost":
                held.relay.lost_while_pipelining()
            else:
                several[1].may_follow = False
            held.send_all(several)
        assert outcomes(several) == [SENT] * 3
        pipelined = [each.pipelined for each in several]
        assert pipelined == [False, False, why == "alone"]


@pytest.mark.parametrize("phase", ["rcpt", "data"])
def test_a_time_out_in_pipelining_names_the_option(phase: Any) -> None:
    with FaultServer([On(phase, do=hang())]) as server:
        one = send_one(server, transaction(), timeout=SHORT)
        assert isinstance(one.failure, TimeoutError)
        assert "set pipelining=False" in str(one.failure)
        two = send_one(server, transaction(), timeout=SHORT, pipelining=False)
        assert isinstance(two.failure, TimeoutError)
        assert "pipelining" not in str(two.failure)


def test_a_time_out_behind_the_end_of_another_message_names_the_option() -> None:
    with FaultServer([On("mail", message=2, do=hang())]) as server:
        one, two = transaction("1@x.test"), transaction("2@x.test")
        with session(server, timeout=SHORT) as held:
            held.send_all([one, two])
        assert one.outcome is SENT
        assert "set pipelining=False" in str(two.failure)


@pytest.mark.parametrize("phase", ["mail", "dot"])
def test_another_time_out_does_not_name_the_option(phase: Any) -> None:
    with FaultServer([On(phase, do=hang())]) as server:
        one = send_one(server, transaction(), timeout=SHORT, final_reply_timeout=SHORT)
        assert isinstance(one.failure, TimeoutError)
        assert "pipelining" not in str(one.failure)


# -- between messages ------------------------------------------------------------------


def test_only_250_answers_a_ping() -> None:
    with FaultServer() as server, session(server) as held:
        assert held.ping(5)
        server.script.append(On("noop", times=1, do=reply(220)))
        assert not held.ping(5)
        server.script.append(On("noop", times=1, do=raw(b"250 ok\r\n421 bye\r\n")))
        assert not held.ping(5)
        # What came behind that is read in place of the next answer.
        assert not held.ping(5)


@pytest.mark.parametrize("do", cases(hang=hang(), drop=drop(), junk=raw(b"?\r\n")))
def test_a_ping_without_a_valid_reply_fails(do: Action) -> None:
    with FaultServer([On("noop", do=do)]) as server, session(server) as held:
        began = time.monotonic()
        assert not held.ping(SHORT)
        assert time.monotonic() - began < 5


def test_quit_waits_for_its_reply() -> None:
    with FaultServer() as server, session(server) as held:
        held.send_quit()
        held.wait_closed(time.monotonic() + 5)
        assert held.closed
        assert spoken(server) == ["QUIT"]
    with FaultServer([On("quit", do=stall(SHORT))]) as server, session(server) as held:
        began = time.monotonic()
        held.send_quit()
        held.wait_closed(began + 5)
        assert SHORT * 0.9 < time.monotonic() - began < 4


@pytest.mark.parametrize("do", cases(hang=hang(), drop=drop(), junk=raw(b"?\r\n")))
def test_quit_without_a_reply_ends_in_time(do: Action) -> None:
    with FaultServer([On("quit", do=do)]) as server, session(server) as held:
        held.send_quit()
        began = time.monotonic()
        held.wait_closed(began + SHORT)
        assert time.monotonic() - began < 5
        assert held.closed


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
        made = connect(
            config.endpoint,
            RelayState(),
            until=time.monotonic() + 5,
            timeout=config.timeout,
            trace=lambda *step: traced.append(step),
        )
        traced.clear()
        made.send(transaction(), config=config)
        made.close()
    steps = [step.split(":")[0] for step, _ in traced]
    assert steps == ["MAIL FROM", "RCPT TO", "DATA", "."]
    assert traced[-1][1] == "250 2.0.0 queued"
