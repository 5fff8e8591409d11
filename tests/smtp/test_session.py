"""One session: what is written when, what each reply means, and where the commit point is."""

from __future__ import annotations

import select
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import RelayState, ServerClosing, connect
from django_lettermint.smtp.replies import ProtocolError
from tests.faultserver import (
    FEATURES,
    Answer,
    FaultServer,
    On,
    accept_then,
    drop,
    endless,
    gate,
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
    relay,
    session,
    spoken,
    strike_and_wait,
    transaction,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_lettermint.smtp import MailTransaction, Reply
    from django_lettermint.smtp.stream import SMTPStream
    from tests.faults import Action, Wire

BOB = "bob@example.org"
BIG = b"Subject: Big\r\n\r\n" + (b"x" * 78 + b"\r\n") * 100_000
CHUNKING = (*FEATURES, "CHUNKING")
SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


def without(*names: str) -> tuple[str, ...]:
    return tuple(each for each in FEATURES if each.partition(" ")[0] not in names)


def send_one(
    server: FaultServer, one: MailTransaction, **options: Any
) -> MailTransaction:
    """Send over a session of its own and return the transaction."""
    with session(server, **options) as held:
        held.send(one)
        assert held.reusable is not held.closed
    return one


def outcomes(transactions: list[MailTransaction]) -> list[Outcome]:
    return [each.outcome for each in transactions]


class ObservedStream:
    """A stream that calls functions before it writes, and before it waits for a reply."""

    def __init__(
        self,
        stream: SMTPStream,
        *,
        before_write: Callable[[bytes], None] = lambda _: None,
        before_read: Callable[[], None] = lambda: None,
    ) -> None:
        self._stream = stream
        self._before_write = before_write
        self._before_read = before_read

    def write(self, data: bytes, until: float, **options: Any) -> None:
        self._before_write(data)
        self._stream.write(data, until, **options)

    def read_reply(self, until: float) -> Reply:
        self._before_read()
        return self._stream.read_reply(until)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# -- a plain message ---------------------------------------------------------------------


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
            content = b"".join(line + b"\r\n" for line in lines) or b"\r\n"
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


# -- what the relay can take ---------------------------------------------------------------------------


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
        assert "the relay takes 30" in str(one.failure)
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


# -- pipelining --------------------------------------------------------------------------


def heard_at(
    server: FaultServer, phase: Any, **options: Any
) -> tuple[bytes, MailTransaction]:
    """Return what the server has received when it comes to a phase, and the transaction."""
    release, reached = threading.Event(), threading.Event()
    server.script.append(On(phase, times=1, do=gate(release, reached)))
    one = transaction(BOB, "cid@example.org")
    with session(server, **options) as held:
        sender = threading.Thread(target=held.send, args=(one,))
        sender.start()
        assert reached.wait(5)
        received = server.received[1].partition(b"MAIL")[2]
        release.set()
        sender.join(5)
    return received, one


def test_with_pipelining_all_commands_are_written_at_once() -> None:
    with FaultServer() as server:
        received, one = heard_at(server, "mail")
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
        received, one = heard_at(server, "mail", **options)
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


# -- refusals ----------------------------------------------------------------------------


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


# -- refusals by X.4.2 -------------------------------------------------------------------


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


def test_x42_as_a_later_reply_after_idling_is_a_refusal() -> None:
    with FaultServer([On("rcpt", do=reply(451, "4.4.2 no answer"))]) as server:
        one = transaction()
        one.after_idle = True
        with session(server) as held:
            held.send(one)
            assert held.reusable
        assert (one.reply and one.reply.code) == 451


def test_any_other_first_reply_after_idling_is_a_refusal() -> None:
    with FaultServer([On("mail", do=reply(451, "4.4.1 no answer"))]) as server:
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


# -- invalid replies and losses before the commit point ----------------------------------------------------------------


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
    "word", cases(word=b"250 spurious\r\n", bye=b"421 idle\r\n", garbage=b"?\r\n")
)
def test_input_while_idle_closes_the_connection(word: bytes) -> None:
    with FaultServer() as server, session(server) as held:
        held.send(transaction("1@x.test"))
        server.act(1, raw(word))
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
    ids=["refusal", "success", "goodbye", "junk", "cut"],
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


# -- the commit point --------------------------------------------------------------


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


# -- BDAT --------------------------------------------------------------------------------


def test_a_chunk_is_written_at_once_except_for_its_last_octets() -> None:
    release, reached = threading.Event(), threading.Event()
    script = [On("mail", do=gate(release, reached))]
    with FaultServer(script, features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            one = transaction()
            sender = threading.Thread(target=held.send, args=(one,))
            sender.start()
            assert reached.wait(5)
            received = server.received[1].partition(b"MAIL")[2]
            release.set()
            sender.join(5)
        assert one.outcome is SENT
        content = one.envelope.content
        assert received.endswith(b"BDAT %d LAST\r\n" % len(content) + content[:-2])
        assert server.violations == []


def test_chunking_is_used_only_if_offered_and_enabled() -> None:
    for features, wanted in [(FEATURES, True), (CHUNKING, False)]:
        with FaultServer(features=features) as server:
            assert send_one(server, transaction(), chunking=wanted).outcome is SENT
            assert "DATA" in spoken(server)


def test_without_pipelining_a_chunk_waits_for_each_reply() -> None:
    with (
        FaultServer(features=("CHUNKING",)) as server,
        session(server, chunking=True) as held,
    ):
        several = [transaction(f"{number}@x.test") for number in (1, 2)]
        held.send_all(several)
        assert outcomes(several) == [SENT, SENT]
        assert server.violations == []


def unconfirmed(server: FaultServer, count: int, **kinds: Any) -> tuple[int, int]:
    """Return how many messages were written before the first reply, and were sent."""
    release = threading.Event()
    server.script.append(On("mail", times=1, do=gate(release)))
    several = [transaction(f"{number}@x.test", **kinds) for number in range(count)]
    written: list[int] = []

    def before_read() -> None:
        written.append(sum(each.phase is Phase.COMMIT for each in several))
        release.set()

    with session(server, chunking=True) as held:
        observed = ObservedStream(held.stream, before_read=before_read)
        held.session.stream = cast("SMTPStream", observed)
        held.send_all(several)
    return written[0], sum(each.outcome is SENT for each in several)


def test_up_to_50_repeatable_messages_may_be_unconfirmed() -> None:
    with FaultServer(features=CHUNKING) as server:
        assert unconfirmed(server, 70, repeatable=True) == (50, 70)
        assert set(server.delivered.values()) == {1}
        assert server.violations == []


def test_up_to_1_mib_of_repeatable_messages_may_be_unconfirmed() -> None:
    content = b"x" * 70 + b"\r\n"
    with FaultServer(features=CHUNKING) as server:
        big = content * 5000  # 360,000 octets: two of them, and a third is too much
        ahead, sent = unconfirmed(server, 4, repeatable=True, content=big)
        assert (ahead, sent) == (2, 4)
        assert server.violations == []


def test_messages_without_a_key_are_confirmed_one_by_one() -> None:
    with FaultServer(features=CHUNKING) as server:
        assert unconfirmed(server, 5) == (1, 5)


def window(kinds: str) -> list[MailTransaction]:
    """Return transactions, each repeatable (r) or not (-)."""
    return [
        transaction(f"{number}@x.test", repeatable=kind == "r")
        for number, kind in enumerate(kinds, 1)
    ]


@pytest.mark.parametrize("code", [451, 550])
@pytest.mark.parametrize("phase", ["mail", "rcpt", "dot"])
def test_a_refused_chunk_does_not_affect_its_neighbours(phase: Any, code: int) -> None:
    script = [On(phase, message=2, do=reply(code))]
    with FaultServer(script, features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            several = window("rrrr")
            held.send_all(several)
            assert outcomes(several) == [SENT, NOT_SENT, SENT, SENT]
            ends_at = {"mail": Phase.MAIL, "rcpt": Phase.RCPT, "dot": Phase.COMMIT}
            assert several[1].phase is ends_at[phase]
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1, "4@x.test": 1}
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize(
    ("phase", "do"),
    [("mail", drop()), ("rcpt", drop()), ("dot", drop())],
    ids=["mail", "rcpt", "dot"],
)
def test_a_loss_among_unconfirmed_chunks_confirms_nothing_after_it(
    phase: Any, do: Action
) -> None:
    with FaultServer([On(phase, message=2, do=do)], features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            several = window("rrr")
            held.send_all(several)
            # What had left before the loss was seen is unknown, the rest was not sent.
            assert SENT not in outcomes(several[1:])
            assert several[0].outcome is SENT
            begun = [each for each in several[1:] if each.started]
            assert all(isinstance(each.failure, OSError) for each in begun)
        assert server.delivered == {"1@x.test": 1}


def test_421_to_mail_means_that_the_chunk_is_not_sent() -> None:
    script = [On("mail", message=2, do=reply(421, close=True))]
    with FaultServer(script, features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            several = window("rrr")
            held.send_all(several)
            # The third may or may not be on the wire when the second's reply is seen.
            assert outcomes(several)[:2] == [SENT, NOT_SENT]
            assert several[2].outcome is not SENT
        assert server.delivered == {"1@x.test": 1}


def test_a_message_without_a_key_waits_for_the_chunks_before_it() -> None:
    script = [On("dot", message=2, do=drop())]
    with (
        FaultServer(script, features=CHUNKING) as server,
        session(server, chunking=True) as held,
    ):
        several = window("rr-r")
        held.send_all(several)
        assert outcomes(several) == [SENT, UNKNOWN, NOT_SENT, NOT_SENT]
        assert several[2].started == 0


def test_a_chunk_that_is_too_large_does_not_affect_its_neighbours() -> None:
    with FaultServer(features=("SIZE 200", "PIPELINING", "CHUNKING")) as server:
        with session(server, chunking=True) as held:
            several = window("rrr")
            several[1] = transaction(
                "2@x.test", repeatable=True, content=b"x: " + b"y" * 300 + b"\r\n"
            )
            held.send_all(several)
            assert outcomes(several) == [SENT, NOT_SENT, SENT]
            assert several[1].phase is Phase.MESSAGE
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}


@pytest.mark.parametrize("phase", ["mail", "rcpt"])
def test_a_chunk_with_many_recipients_is_refused_before_its_content(phase: Any) -> None:
    everybody = [f"{number}@x.test" for number in range(120)]
    script = [On(phase, message=1, do=reply(550))]
    with FaultServer(script, features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            one, two = transaction(*everybody), transaction("two@x.test")
            held.send(one, [two])
            assert one.outcome is NOT_SENT
            assert held.needs_rset
            held.send(two)
            assert two.outcome is SENT
        assert server.delivered == {"two@x.test": 1}
        assert spoken(server).count("BDAT") == (1 if phase == "mail" else 2)
        assert server.violations == []


def test_a_chunk_with_many_recipients_waits_for_the_chunks_before_it() -> None:
    everybody = [f"{number}@x.test" for number in range(120)]
    with FaultServer(features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            several = [
                transaction("a@x.test", repeatable=True),
                transaction(*everybody, repeatable=True),
                transaction("b@x.test", repeatable=True),
            ]
            held.send_all(several)
            assert outcomes(several) == [SENT] * 3
        assert set(server.delivered.values()) == {1}
        assert len(server.delivered) == 122
        assert server.violations == []


@pytest.mark.parametrize(
    "do", cases(fin=drop(), rst=drop(rst=True), hang=hang()), ids=None
)
def test_a_chunk_lost_before_its_last_octets_is_not_sent(do: Action) -> None:
    early = On("body", after_bytes=50_000, do=do)
    with FaultServer([early], features=CHUNKING, rcvbuf=4096) as server:
        one = send_one(server, transaction(content=BIG), chunking=True, timeout=SHORT)
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, OSError)
        assert server.deliveries == []


def test_an_early_refusal_is_the_reason_of_a_chunk_that_times_out() -> None:
    refused = [On("mail", do=reply(552, "5.3.4 too big")), On("body", do=hang())]
    with FaultServer(refused, features=CHUNKING, rcvbuf=4096) as server:
        one = send_one(server, transaction(content=BIG), chunking=True, timeout=SHORT)
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.MAIL
        assert one.reply
        assert one.reply.code == 552


def test_a_chunk_refused_while_it_is_written_is_written_to_its_end() -> None:
    script = [On("mail", message=1, do=reply(552, "5.3.4 too big"))]
    with FaultServer(script, features=CHUNKING, rcvbuf=4096) as server:
        with session(server, chunking=True) as held:
            # More than all buffers hold: its refusal is there before its last octets go.
            one, two = transaction("1@x.test", content=BIG), transaction("2@x.test")
            held.send_all([one, two])
            assert outcomes([one, two]) == [NOT_SENT, SENT]
            assert one.phase is Phase.MAIL
        assert server.delivered == {"2@x.test": 1}
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize(
    ("early", "code"), [(b"552 5.3.4 no\r\n", 552), (b"250 ok\r\n", None)], ids=str
)
def test_a_reply_to_an_incomplete_chunk_does_not_confirm_it(
    early: bytes, code: int | None
) -> None:
    ahead = On("rcpt", do=raw(b"250 ok\r\n" + early))
    with FaultServer(
        [ahead, On("body", do=hang())], features=CHUNKING, rcvbuf=4096
    ) as server:
        one = send_one(server, transaction(content=BIG), chunking=True, timeout=SHORT)
        assert one.outcome is NOT_SENT
        assert (one.reply.code if one.reply else None) == code
        assert one.phase is (Phase.CONTENT if code else Phase.RCPT)
        assert server.deliveries == []


def test_a_chunk_accepted_after_a_refused_sender_is_unknown() -> None:
    script = [
        On("mail", do=reply(451)),
        On("rcpt", do=reply(250)),
        On("bdat", do=reply(250)),
    ]
    with FaultServer(script, features=CHUNKING) as server:
        one = send_one(server, transaction(), chunking=True)
        assert one.outcome is UNKNOWN
        assert one.reply is None
        assert "refused at MAIL" in str(one.failure)


def test_a_chunk_accepted_without_recipients_is_not_sent() -> None:
    script = [On("rcpt", do=reply(550)), On("bdat", do=reply(250))]
    with FaultServer(script, features=CHUNKING) as server:
        one = send_one(server, transaction(), chunking=True)
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.RCPT
        assert server.deliveries == []


@pytest.mark.parametrize(
    "do", cases(silent=hang(), reset=drop(rst=True), closed=drop())
)
@pytest.mark.parametrize("phase", ["mail", "rcpt"])
def test_a_chunk_is_not_sent_over_a_connection_that_died_while_idle(
    phase: Any, do: Action
) -> None:
    with FaultServer([On(phase, do=do)], features=CHUNKING) as server:
        one = transaction()
        one.after_idle = True
        send_one(server, one, chunking=True, timeout=SHORT)
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, OSError)
        assert "BDAT" not in spoken(server)
        assert b"BDAT" not in server.received[1]


def test_after_idling_mail_and_rcpt_are_written_before_the_chunk() -> None:
    # Together with it, Exim would answer nothing before the chunk is complete.
    with FaultServer(features=CHUNKING) as server:
        release, reached = threading.Event(), threading.Event()
        server.script.append(On("mail", times=1, do=gate(release, reached)))
        one, two = transaction("1@x.test", "2@x.test"), transaction("3@x.test")
        one.after_idle = True
        with session(server, chunking=True) as held:
            sender = threading.Thread(target=held.send_all, args=([one, two],))
            sender.start()
            assert reached.wait(5)
            received = server.received[1].partition(b"MAIL")[2]
            release.set()
            sender.join(5)
        assert received.endswith(b"RCPT TO:<1@x.test>\r\nRCPT TO:<2@x.test>\r\n")
        assert outcomes([one, two]) == [SENT, SENT]
        assert server.violations == []


@pytest.mark.parametrize("phase", ["mail", "rcpt"])
def test_a_message_refused_after_idling_sends_no_chunk(phase: Any) -> None:
    with FaultServer([On(phase, times=1, do=reply(550))], features=CHUNKING) as server:
        one, two = transaction("1@x.test"), transaction("2@x.test")
        one.after_idle = True
        with session(server, chunking=True) as held:
            held.send_all([one, two])
        assert outcomes([one, two]) == [NOT_SENT, SENT]
        assert spoken(server).count("BDAT") == 1
        assert server.violations == []


# -- between messages -----------------------------------------------------------------------


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
