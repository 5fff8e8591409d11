"""One session: what is written when, what each reply means, and where the point of no return is."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.results import Outcome, Phase
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
    session,
    spoken,
    strike_and_wait,
    transaction,
)

if TYPE_CHECKING:
    from django_lettermint.smtp import MailTransaction
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
    """Send over a session of its own and return the attempt."""
    with session(server, **options) as held:
        held.send(one)
        assert held.reusable is not held.closed
    return one


def outcomes(attempts: list[MailTransaction]) -> list[Outcome]:
    return [each.outcome for each in attempts]


# -- a plain message ---------------------------------------------------------------------


@pytest.mark.parametrize("pipelining", cases(on=True, off=False))
def test_a_message_arrives_as_it_is(pipelining: Any) -> None:
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


def test_a_null_sender_is_said_as_such() -> None:
    with FaultServer() as server:
        one = transaction()
        object.__setattr__(one.envelope, "mail_from", "")
        assert send_one(server, one).outcome is SENT
        assert server.deliveries[0].mail_from == ""


def test_the_key_is_the_first_line_of_the_content() -> None:
    with FaultServer() as server:
        one = send_one(server, transaction(repeatable=True))
        (delivery,) = server.deliveries
        assert delivery.key == f"key of {BOB}"
        assert delivery.content == one.envelope.data
        assert delivery.parameters == f"SIZE={len(one.envelope.data)}"


LINES = st.lists(
    st.binary(max_size=5).map(lambda raw: raw.translate(None, b"\r\n\0")), max_size=8
)


def test_any_lines_arrive_unchanged_whatever_dots_they_begin_with() -> None:
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


# -- what fits ---------------------------------------------------------------------------


def test_a_message_beyond_the_size_limit_is_not_begun() -> None:
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
def test_a_size_limit_that_is_none_limits_nothing(limit: str) -> None:
    with FaultServer(features=(limit,)) as server:
        assert send_one(server, transaction()).outcome is SENT
        assert server.deliveries[0].parameters.startswith("SIZE=")


def test_eight_bits_are_declared() -> None:
    content = "Subject: x\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\u00e9\r\n".encode()
    with FaultServer() as server:
        assert send_one(server, transaction(content=content)).outcome is SENT
        assert server.deliveries[0].parameters.endswith(" BODY=8BITMIME")
        assert server.deliveries[0].content == content
        assert server.violations == []


EIGHT_BIT = (
    "Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    "Content-Transfer-Encoding: 8bit\r\n\r\n\u00e9\r\n"
).encode()


@pytest.mark.parametrize("count", [1, 3])
def test_eight_bits_become_seven_for_a_relay_that_takes_no_more(count: int) -> None:
    with FaultServer(features=without("8BITMIME")) as server, session(server) as held:
        # The second and third ride behind the one before.
        attempts = [transaction(content=EIGHT_BIT) for _ in range(count)]
        held.send_all(attempts)
        assert outcomes(attempts) == [SENT] * count
        for each, delivery in zip(attempts, server.deliveries, strict=True):
            assert b"=C3=A9" in delivery.content
            assert delivery.parameters == f"SIZE={len(delivery.content)}"
            assert each.envelope.content == delivery.content
        assert server.violations == []


def test_bytes_that_were_sent_before_are_not_encoded_anew() -> None:
    with FaultServer(features=without("8BITMIME")) as server:
        one = transaction(content=EIGHT_BIT)
        one.frozen = True
        send_one(server, one)
        assert one.outcome is NOT_SENT
        assert one.permanent_failure
        assert "no longer offers 8BITMIME" in str(one.failure)
        assert spoken(server) == []


def test_an_address_beyond_ascii_needs_smtputf8() -> None:
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


def test_a_message_that_does_not_fit_does_not_ride_and_harms_nobody() -> None:
    with FaultServer(features=("SIZE 60", "PIPELINING")) as server:
        with session(server) as held:
            attempts = [transaction("1@x.test"), transaction("2@x.test", content=b"x" * 99 + b"\r\n"), transaction("3@x.test")]  # fmt: skip
            held.send_all(attempts)
            assert outcomes(attempts) == [SENT, NOT_SENT, SENT]
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}
        assert server.violations == []


def test_the_number_of_messages_a_server_allows_is_read() -> None:
    for limits, expected in [("LIMITS RCPTMAX=9 MAILMAX=20", 20), ("LIMITS MAILMAX=many", None), ("LIMITS MAILMAX", None), ("X", None)]:  # fmt: skip
        with FaultServer(features=(limits,)) as server, session(server) as held:
            assert held.mail_max == expected


# -- pipelining --------------------------------------------------------------------------


def heard_at(
    server: FaultServer, phase: Any, **options: Any
) -> tuple[bytes, MailTransaction]:
    """Return what the server has received when it comes to a phase, and the attempt."""
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


def test_a_relay_that_pipelines_gets_all_commands_in_one_write() -> None:
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
def test_commands_go_out_in_groups_that_no_buffer_chokes_on(local: str) -> None:
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


def test_a_sender_that_is_refused_ends_it_after_the_first_group() -> None:
    everybody = [f"{number}@example.org" for number in range(250)]
    with FaultServer([On("mail", do=reply(550))]) as server:
        one = send_one(server, transaction(*everybody))
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.MAIL
        assert len(spoken(server)) == 100


def test_recipients_that_are_all_refused_end_it_before_a_data_of_its_own() -> None:
    everybody = [f"{number}@example.org" for number in range(99)]
    with FaultServer([On("rcpt", do=reply(550))]) as server:
        # 100 commands make a group, so that DATA would be the next one.
        one = send_one(server, transaction(*everybody))
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.RCPT
        assert "DATA" not in spoken(server)


def test_the_next_message_rides_behind_the_end_of_the_one_before() -> None:
    release, reached = threading.Event(), threading.Event()
    script = [On("dot", message=1, do=gate(release, reached))]
    with FaultServer(script) as server, session(server) as held:
        attempts = [
            transaction("1@x.test"),
            transaction("2@x.test"),
            transaction("3@x.test"),
        ]
        sender = threading.Thread(target=send_all, args=(held, attempts))
        sender.start()
        assert reached.wait(5)
        received = server.received[1]
        assert received.endswith(b"\r\n.\r\nMAIL FROM:<ann@example.org> SIZE=30\r\nRCPT TO:<2@x.test>\r\nDATA\r\n".replace(b"30", b"%d" % attempts[1].envelope.size))  # fmt: skip
        release.set()
        sender.join(5)
        assert outcomes(attempts) == [SENT] * 3
        assert held.messages == 3
        assert server.delivered == {"1@x.test": 1, "2@x.test": 1, "3@x.test": 1}
        assert server.violations == []


def test_a_message_of_several_groups_does_not_ride() -> None:
    everybody = [f"{number}@x.test" for number in range(120)]
    with FaultServer() as server, session(server) as held:
        attempts = [
            transaction("one@x.test"),
            transaction(*everybody),
            transaction("two@x.test"),
        ]
        held.send_all(attempts)
        assert outcomes(attempts) == [SENT] * 3
        assert not attempts[1].pipelined
        assert attempts[2].pipelined
        assert server.violations == []


# -- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize("pipelining", cases(on=True, off=False))
@pytest.mark.parametrize("code", [451, 550])
@pytest.mark.parametrize(
    ("phase", "ends_at"),
    [("mail", Phase.MAIL), ("rcpt", Phase.RCPT), ("data", Phase.DATA), ("dot", Phase.COMMIT)],
)  # fmt: skip
def test_a_refusal_is_believed_and_the_next_message_goes_out_clean(
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
def test_a_refusal_in_the_middle_of_riders_harms_nobody_else(
    phase: Any, code: int
) -> None:
    with FaultServer([On(phase, message=2, do=reply(code))]) as server:
        with session(server) as held:
            attempts = [transaction(f"{number}@x.test") for number in (1, 2, 3, 4)]
            held.send_all(attempts)
            assert outcomes(attempts) == [SENT, NOT_SENT, SENT, SENT]
            assert attempts[1].reply
            assert attempts[1].reply.code == code
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1, "4@x.test": 1}
        assert server.connections == 1
        assert server.violations == []


def test_a_recipient_that_is_refused_leaves_the_message_to_the_others() -> None:
    with FaultServer([On("rcpt", match="2@", do=reply(450))]) as server:
        one = send_one(server, transaction("1@x.test", "2@x.test", "3@x.test"))
        assert one.outcome is SENT
        assert one.accepted == one.not_refused == ("1@x.test", "3@x.test")
        assert one.replies["2@x.test"].code == 450
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}


@pytest.mark.parametrize("code", [251, 252])
def test_a_recipient_that_is_forwarded_or_not_verified_is_accepted(code: int) -> None:
    with FaultServer([On("rcpt", do=reply(code))]) as server:
        assert send_one(server, transaction()).outcome is SENT


def test_one_refusal_for_now_decides_for_all() -> None:
    script = [On("rcpt", match="1@", do=reply(550)), On("rcpt", do=reply(450))]
    with FaultServer(script) as server:
        one = send_one(server, transaction("1@x.test", "2@x.test"))
        assert one.reply
        assert one.reply.code == 450
        assert not one.permanent_failure


@pytest.mark.parametrize("code", [250, 554])
def test_a_server_that_awaits_a_message_for_nobody_gets_a_lone_dot(code: int) -> None:
    script = [
        On("rcpt", message=1, do=reply(550)),
        On("data", message=1, do=reply(354)),
        On("dot", message=1, do=reply(code)),
    ]
    with FaultServer(script) as server, session(server) as held:
        attempts = [transaction("1@x.test"), transaction("2@x.test")]
        held.send_all(attempts)
        assert outcomes(attempts) == [NOT_SENT, SENT]
        assert attempts[0].phase is Phase.RCPT
        assert server.delivered == {"2@x.test": 1}
        assert b"DATA\r\n.\r\nRSET\r\nMAIL" in server.received[1]
        assert server.connections == 1


def test_a_lone_dot_leaves_the_session_in_step() -> None:
    script = [On("rcpt", do=reply(550)), On("data", do=reply(354))]
    with FaultServer(script) as server, session(server) as held:
        held.send(transaction())
        assert (held.reusable, held.needs_rset, held.alive()) == (True, True, True)


def test_a_server_that_awaits_a_message_it_refused_gets_no_end_of_it() -> None:
    script = [On("mail", do=reply(451)), On("rcpt", do=reply(250)), On("data", do=reply(354))]  # fmt: skip
    with FaultServer(script) as server:
        one = send_one(server, transaction())
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.MAIL
        assert server.wait_for(lambda: server.open_connections == 0)
        assert server.deliveries == []


@pytest.mark.parametrize(
    "do", cases(refused=reply(500), drop=drop(), closing=reply(421), odd=reply(354))
)
def test_a_reset_that_fails_closes_the_connection(do: Action) -> None:
    script = [On("rcpt", message=1, do=reply(550)), On("rset", do=do)]
    with FaultServer(script) as server, session(server) as held:
        held.send(transaction("1@x.test"))
        two = transaction("2@x.test")
        held.send(two)
        assert two.outcome is NOT_SENT
        assert isinstance(two.failure, OSError)
        assert held.closed
        assert server.delivered == {}


# -- a server out of step ----------------------------------------------------------------


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
        idle=reply(451, "4.4.2 idle too long"),
        fin=drop(),
        rst=drop(rst=True),
        hang=hang(),
        slow=trickle(b"250-slow\r\n" * 99, 0.05),
    ),
)
@pytest.mark.parametrize("pipelining", cases(on=True, off=False))
def test_a_reply_that_is_none_ends_it_before_anything_is_sent(
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
def test_a_go_ahead_that_nobody_asked_for_sends_no_content(phase: Any) -> None:
    with FaultServer([On(phase, do=reply(354))]) as server:
        one = send_one(server, transaction())
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, ProtocolError)
        assert b"Subject" not in server.received[1]


def test_a_success_in_place_of_the_go_ahead_sends_no_content() -> None:
    with FaultServer([On("data", do=reply(250))]) as server:
        one = send_one(server, transaction())
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, ProtocolError)
        assert "unexpected reply to DATA: 250" in str(one.failure)
        assert b"Subject" not in server.received[1]


@pytest.mark.parametrize(
    "word", cases(word=b"250 spurious\r\n", bye=b"421 idle\r\n", garbage=b"?\r\n")
)
def test_a_server_that_spoke_while_idle_gets_no_message(word: bytes) -> None:
    with FaultServer() as server, session(server) as held:
        held.send(transaction("1@x.test"))
        server.act(1, raw(word))
        two = transaction("2@x.test")
        held.send(two)
        assert two.outcome is NOT_SENT
        assert isinstance(two.failure, ConnectionResetError)
        assert held.closed
        assert spoken(server).count("MAIL") == 1


def test_a_server_that_left_while_idle_gets_no_message() -> None:
    with FaultServer() as server, session(server) as held:
        server.act(1, drop())
        assert not held.alive()
        one = transaction()
        held.send(one)
        assert one.outcome is NOT_SENT
        assert spoken(server) == []


@pytest.mark.parametrize(
    ("extra", "code"),
    [(b"451 4.3.0 oops\r\n", 451), (b"250 ok\r\n", None), (b"421 bye\r\n", None),
     (b"junk\r\n", None), (b"451 4.3.0 cut", None)],
    ids=["refusal", "success", "goodbye", "junk", "cut"],
)  # fmt: skip
def test_a_word_behind_the_go_ahead_stops_the_end_of_the_message(
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


@pytest.mark.parametrize("close", cases(stays=False, leaves=True))
@pytest.mark.parametrize("code", [451, 552])
def test_a_refusal_while_the_content_is_written_is_believed(
    code: int, close: Any
) -> None:
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


def test_a_refusal_while_the_content_is_written_stops_it() -> None:
    early = On("body", after_bytes=50_000, do=reply(552, "too big"))
    with FaultServer([early], rcvbuf=4096) as server:
        one = send_one(server, transaction(content=BIG * 5), timeout=5)
        assert one.outcome is NOT_SENT
        assert server.wait_for(lambda: server.open_connections == 0)
        assert len(server.received[1]) < len(BIG) * 4


@pytest.mark.parametrize(
    "do", cases(fin=drop(), rst=drop(rst=True), hang=hang(), bye=reply(421, close=True), done=reply(250))
)  # fmt: skip
def test_a_loss_while_the_content_is_written_is_before_the_point_of_no_return(
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


# -- the point of no return --------------------------------------------------------------


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
def test_whatever_is_no_reply_to_the_end_leaves_it_unknown(
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
def test_a_confirmation_counts_though_the_connection_is_lost_behind_it(
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
def test_a_goodbye_at_the_end_is_a_refusal_and_closes(chunking: Any) -> None:
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


def test_the_reply_to_the_end_has_a_time_of_its_own() -> None:
    with FaultServer([On("dot", do=stall(3 * SHORT))]) as server:
        one = send_one(server, transaction(), timeout=SHORT, final_reply_timeout=5)
        assert one.outcome is SENT
    with FaultServer([On("dot", do=stall(30))]) as server:
        one = send_one(server, transaction(), timeout=5, final_reply_timeout=SHORT)
        assert one.outcome is UNKNOWN


def test_garbage_behind_the_confirmation_is_not_taken_for_the_next_messages() -> None:
    script = [On("dot", message=1, do=accept_then(raw(b"250 ok\r\n250 ok\r\n")))]
    with FaultServer(script) as server, session(server) as held:
        attempts = [transaction("1@x.test"), transaction("2@x.test")]
        held.send_all(attempts)
        assert outcomes(attempts) == [SENT, NOT_SENT]
        assert isinstance(attempts[1].failure, ProtocolError)
        assert server.delivered == {"1@x.test": 1}


@pytest.mark.parametrize(
    ("phase", "outcome"),
    [("mail", NOT_SENT), ("rcpt", NOT_SENT), ("data", NOT_SENT), ("dot", UNKNOWN)],
)
def test_the_time_of_a_message_may_end_in_any_phase(
    phase: Any, outcome: Outcome
) -> None:
    with FaultServer([On(phase, do=hang())]) as server:
        began = time.monotonic()
        one = send_one(server, transaction(seconds=SHORT), timeout=30)
        assert time.monotonic() - began < 5
        assert one.outcome is outcome
        assert isinstance(one.failure, TimeoutError)


def test_the_time_of_a_message_bounds_many_slow_replies() -> None:
    everybody = [f"{number}@x.test" for number in range(20)]
    with FaultServer([On("rcpt", do=stall(0.2))]) as server:
        began = time.monotonic()
        one = send_one(server, transaction(*everybody, seconds=1), timeout=0.5)
        assert time.monotonic() - began < 2.5
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.RCPT
        assert server.deliveries == []


def test_a_time_that_is_over_says_nothing() -> None:
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
def test_an_interrupt_propagates_and_leaves_what_is_certain(
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


def test_a_chunk_goes_out_in_one_write_but_for_its_end() -> None:
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


def test_chunking_is_used_only_if_it_is_offered_and_wanted() -> None:
    for features, wanted in [(FEATURES, True), (CHUNKING, False)]:
        with FaultServer(features=features) as server:
            assert send_one(server, transaction(), chunking=wanted).outcome is SENT
            assert "DATA" in spoken(server)


def test_without_pipelining_a_chunk_waits_for_each_reply() -> None:
    with (
        FaultServer(features=("CHUNKING",)) as server,
        session(server, chunking=True) as held,
    ):
        attempts = [transaction(f"{number}@x.test") for number in (1, 2)]
        held.send_all(attempts)
        assert outcomes(attempts) == [SENT, SENT]
        assert server.violations == []


def unconfirmed(server: FaultServer, count: int, **kinds: Any) -> tuple[int, int]:
    """Return how many messages were on the wire before the first reply, and were sent."""
    release, reached = threading.Event(), threading.Event()
    server.script.append(On("mail", times=1, do=gate(release, reached)))
    with session(server, chunking=True) as held:
        attempts = [transaction(f"{number}@x.test", **kinds) for number in range(count)]
        sender = threading.Thread(target=send_all, args=(held, attempts))
        sender.start()
        assert reached.wait(5)
        # All that may be written without a reply is in the kernel's hands soon.
        server.wait_for(lambda: False, timeout=SHORT)
        ahead = sum(each.phase is Phase.COMMIT for each in attempts)
        release.set()
        sender.join(10)
        return ahead, sum(each.outcome is SENT for each in attempts)


def test_a_window_of_repeatable_messages_may_be_unconfirmed() -> None:
    with FaultServer(features=CHUNKING) as server:
        assert unconfirmed(server, 70, repeatable=True) == (50, 70)
        assert set(server.delivered.values()) == {1}
        assert server.violations == []


def test_a_window_ends_with_its_octets() -> None:
    content = b"x" * 70 + b"\r\n"
    with FaultServer(features=CHUNKING) as server:
        big = content * 5000  # 360,000 octets: two of them, and a third is too much
        ahead, sent = unconfirmed(server, 4, repeatable=True, content=big)
        assert (ahead, sent) == (2, 4)
        assert server.violations == []


def test_a_message_that_must_not_be_repeated_waits_for_its_confirmation() -> None:
    with FaultServer(features=CHUNKING) as server:
        assert unconfirmed(server, 5) == (1, 5)


def window(kinds: str) -> list[MailTransaction]:
    """Return attempts, each repeatable (r) or not (-)."""
    return [
        transaction(f"{number}@x.test", repeatable=kind == "r")
        for number, kind in enumerate(kinds, 1)
    ]


@pytest.mark.parametrize("code", [451, 550])
@pytest.mark.parametrize("phase", ["mail", "rcpt", "dot"])
def test_a_refusal_in_the_middle_of_a_window_harms_nobody_else(
    phase: Any, code: int
) -> None:
    script = [On(phase, message=2, do=reply(code))]
    with FaultServer(script, features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            attempts = window("rrrr")
            held.send_all(attempts)
            assert outcomes(attempts) == [SENT, NOT_SENT, SENT, SENT]
            ends_at = {"mail": Phase.MAIL, "rcpt": Phase.RCPT, "dot": Phase.COMMIT}
            assert attempts[1].phase is ends_at[phase]
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1, "4@x.test": 1}
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize(
    ("phase", "do"),
    [("mail", drop()), ("rcpt", drop()), ("dot", drop())],
    ids=["mail", "rcpt", "dot"],
)
def test_a_loss_in_the_middle_of_a_window_confirms_nothing_behind_it(
    phase: Any, do: Action
) -> None:
    with FaultServer([On(phase, message=2, do=do)], features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            attempts = window("rrr")
            held.send_all(attempts)
            # What had left before the loss was seen is unknown, the rest was not sent.
            assert SENT not in outcomes(attempts[1:])
            assert attempts[0].outcome is SENT
            begun = [each for each in attempts[1:] if each.started]
            assert all(isinstance(each.failure, OSError) for each in begun)
        assert server.delivered == {"1@x.test": 1}


def test_a_goodbye_at_mail_tells_that_its_chunk_is_not_taken() -> None:
    script = [On("mail", message=2, do=reply(421, close=True))]
    with FaultServer(script, features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            attempts = window("rrr")
            held.send_all(attempts)
            # The third may or may not be on the wire when the second's reply is seen.
            assert outcomes(attempts)[:2] == [SENT, NOT_SENT]
            assert attempts[2].outcome is not SENT
        assert server.delivered == {"1@x.test": 1}


def test_a_window_ends_before_a_message_that_must_not_be_repeated() -> None:
    script = [On("dot", message=2, do=drop())]
    with (
        FaultServer(script, features=CHUNKING) as server,
        session(server, chunking=True) as held,
    ):
        attempts = window("rr-r")
        held.send_all(attempts)
        assert outcomes(attempts) == [SENT, UNKNOWN, NOT_SENT, NOT_SENT]
        assert attempts[2].started == 0


def test_a_message_that_does_not_fit_ends_a_window_and_harms_nobody() -> None:
    with FaultServer(features=("SIZE 200", "PIPELINING", "CHUNKING")) as server:
        with session(server, chunking=True) as held:
            attempts = window("rrr")
            attempts[1] = transaction(
                "2@x.test", repeatable=True, content=b"x: " + b"y" * 300 + b"\r\n"
            )
            held.send_all(attempts)
            assert outcomes(attempts) == [SENT, NOT_SENT, SENT]
            assert attempts[1].phase is Phase.MESSAGE
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}


@pytest.mark.parametrize("phase", ["mail", "rcpt"])
def test_a_chunk_of_several_groups_is_refused_before_its_content(phase: Any) -> None:
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


def test_a_chunk_of_several_groups_settles_what_is_ahead_of_it() -> None:
    everybody = [f"{number}@x.test" for number in range(120)]
    with FaultServer(features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            attempts = [
                transaction("a@x.test", repeatable=True),
                transaction(*everybody, repeatable=True),
                transaction("b@x.test", repeatable=True),
            ]
            held.send_all(attempts)
            assert outcomes(attempts) == [SENT] * 3
        assert set(server.delivered.values()) == {1}
        assert len(server.delivered) == 122
        assert server.violations == []


@pytest.mark.parametrize(
    "do", cases(fin=drop(), rst=drop(rst=True), hang=hang()), ids=None
)
def test_a_chunk_that_is_lost_before_its_last_octets_is_not_sent(do: Action) -> None:
    early = On("body", after_bytes=50_000, do=do)
    with FaultServer([early], features=CHUNKING, rcvbuf=4096) as server:
        one = send_one(server, transaction(content=BIG), chunking=True, timeout=SHORT)
        assert one.outcome is NOT_SENT
        assert isinstance(one.failure, OSError)
        assert server.deliveries == []


def test_a_chunk_that_is_refused_early_is_not_sent_for_that_reason() -> None:
    refused = [On("mail", do=reply(552, "5.3.4 too big")), On("body", do=hang())]
    with FaultServer(refused, features=CHUNKING, rcvbuf=4096) as server:
        one = send_one(server, transaction(content=BIG), chunking=True, timeout=SHORT)
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.MAIL
        assert one.reply
        assert one.reply.code == 552


def test_a_chunk_that_is_refused_while_it_is_written_is_written_to_its_end() -> None:
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
def test_a_reply_to_a_chunk_that_is_not_complete_never_confirms_it(
    early: bytes, code: int | None
) -> None:
    ahead = On("rcpt", do=raw(b"250 ok\r\n" + early))
    with FaultServer([ahead, On("body", do=hang())], features=CHUNKING, rcvbuf=4096) as server:  # fmt: skip
        one = send_one(server, transaction(content=BIG), chunking=True, timeout=SHORT)
        assert one.outcome is NOT_SENT
        assert (one.reply.code if one.reply else None) == code
        assert one.phase is (Phase.CONTENT if code else Phase.RCPT)
        assert server.deliveries == []


def test_a_chunk_that_is_taken_though_its_sender_was_refused_is_unknown() -> None:
    script = [On("mail", do=reply(451)), On("rcpt", do=reply(250)), On("bdat", do=reply(250))]  # fmt: skip
    with FaultServer(script, features=CHUNKING) as server:
        one = send_one(server, transaction(), chunking=True)
        assert one.outcome is UNKNOWN
        assert one.reply is None
        assert "refused at MAIL" in str(one.failure)


def test_a_chunk_for_nobody_that_is_taken_is_not_sent() -> None:
    script = [On("rcpt", do=reply(550)), On("bdat", do=reply(250))]
    with FaultServer(script, features=CHUNKING) as server:
        one = send_one(server, transaction(), chunking=True)
        assert one.outcome is NOT_SENT
        assert one.phase is Phase.RCPT
        assert server.deliveries == []


# -- signs of life -----------------------------------------------------------------------


def test_a_ping_is_answered_by_250_and_nothing_else() -> None:
    with FaultServer() as server, session(server) as held:
        assert held.ping(5)
        server.script.append(On("noop", times=1, do=reply(220)))
        assert not held.ping(5)
        server.script.append(On("noop", times=1, do=raw(b"250 ok\r\n421 bye\r\n")))
        assert not held.ping(5)
        # What came behind that is read in place of the next answer.
        assert not held.ping(5)


@pytest.mark.parametrize("do", cases(hang=hang(), drop=drop(), junk=raw(b"?\r\n")))
def test_a_ping_that_gets_no_answer_is_a_sign_of_death(do: Action) -> None:
    with FaultServer([On("noop", do=do)]) as server, session(server) as held:
        began = time.monotonic()
        assert not held.ping(SHORT)
        assert time.monotonic() - began < 5


def test_a_goodbye_is_said_and_awaited() -> None:
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
def test_a_goodbye_that_gets_no_answer_is_bounded(do: Action) -> None:
    with FaultServer([On("quit", do=do)]) as server, session(server) as held:
        held.send_quit()
        began = time.monotonic()
        held.wait_closed(began + SHORT)
        assert time.monotonic() - began < 5
        assert held.closed


def test_a_closed_session_says_no_goodbye() -> None:
    with FaultServer() as server, session(server) as held:
        held.close()
        held.send_quit()
        held.wait_closed(time.monotonic() + 5)
        assert held.closed
        assert not held.alive()
        assert spoken(server) == []


def test_each_command_and_its_reply_are_traced() -> None:
    traced: list[tuple[str, str]] = []
    with FaultServer() as server, session(server) as held:
        held._pipeline._trace = lambda *step: traced.append(step)
        held.send(transaction())
    assert [step.split(":")[0] for step, _ in traced] == ["MAIL FROM", "RCPT TO", "DATA", "."]  # fmt: skip
    assert traced[-1][1] == "250 2.0.0 queued"
