"""Messages sent by BDAT, several of them unconfirmed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from django_lettermint.results import Phase
from tests.faultserver import (
    FEATURES,
    FaultServer,
    On,
    drop,
    gate,
    hang,
    normal,
    raw,
    reply,
)
from tests.sending import SHORT, cases, session, spoken, transaction
from tests.smtp.helpers import (
    BIG,
    CHUNKING,
    NOT_SENT,
    SENT,
    UNKNOWN,
    ObservedStream,
    code,
    outcomes,
    received_at,
    send_one,
    window,
)

if TYPE_CHECKING:
    from django_lettermint.smtp.stream import SMTPStream
    from tests.faults import Action


# -- what is written at once -----------------------------------------------------------


def test_a_chunk_is_written_at_once_and_as_it_is_except_for_its_last_octets() -> None:
    with FaultServer(features=CHUNKING) as server:
        content = b".\r\n..\r\n\r\n.\r\n"  # not dot-stuffed
        one = transaction(content=content)
        received = received_at(server, "mail", one, chunking=True)
        assert received.endswith(b"BDAT %d LAST\r\n" % len(content) + content[:-2])
        assert server.deliveries[0].content == content


@pytest.mark.parametrize(("features", "wanted"), [(FEATURES, True), (CHUNKING, False)])
def test_chunking_is_used_only_if_offered_and_enabled(
    features: tuple[str, ...], wanted: Any
) -> None:
    with FaultServer(features=features) as server:
        send_one(server, transaction(), chunking=wanted)
        assert spoken(server) == ["MAIL", "RCPT", "DATA"]


@pytest.mark.parametrize("kinds", ["rrr", "---"])
def test_without_pipelining_a_chunk_waits_for_each_reply(kinds: str) -> None:
    with FaultServer(features=["CHUNKING"]) as server:
        several = window(kinds)
        with session(server, chunking=True) as held:
            held.send_all(several)
        assert outcomes(several) == [SENT] * 3
        assert not any(each.pipelined for each in several)
        assert server.violations == []


# Messages of 360,000 octets: two of them fit into 1 MiB.
@pytest.mark.parametrize(
    ("count", "lines", "repeatable", "unconfirmed"),
    [(70, 1, True, 50), (4, 5000, True, 2), (5, 1, False, 1)],
    ids=["50 messages", "1 MiB", "without a key"],
)
def test_so_much_may_be_unconfirmed(
    count: int, lines: int, repeatable: Any, unconfirmed: int
) -> None:
    release = threading.Event()
    content = (b"x" * 70 + b"\r\n") * lines
    several = [
        transaction(f"{number}@x.test", repeatable=repeatable, content=content)
        for number in range(count)
    ]
    written: list[int] = []

    def before_read() -> None:
        written.append(sum(each.phase is Phase.COMMIT for each in several))
        release.set()

    script = [On("mail", times=1, do=gate(release))]
    with FaultServer(script, features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            observed = ObservedStream(held.stream, before_read=before_read)
            held.session.stream = cast("SMTPStream", observed)
            held.send_all(several)
        assert written[0] == unconfirmed
        assert outcomes(several) == [SENT] * count
        assert set(server.delivered.values()) == {1}
        assert server.violations == []


# -- neighbours ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "do"),
    [("mail", drop()), ("dot", drop()), ("mail", reply(421, close=True))],
    ids=["mail", "dot", "421"],
)
def test_a_loss_among_unconfirmed_chunks_confirms_nothing_after_it(
    phase: Any, do: Action
) -> None:
    with FaultServer([On(phase, message=2, do=do)], features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            several = window("rrr")
            held.send_all(several)
        # What was written before the loss was seen is unknown, the rest was not sent.
        assert several[0].outcome is SENT
        assert SENT not in outcomes(several[1:])
        begun = [each for each in several[1:] if each.started]
        assert all(isinstance(each.failure, OSError) for each in begun)
        assert server.delivered == {"1@x.test": 1}


def test_a_message_without_a_key_waits_for_the_chunks_before_it() -> None:
    with FaultServer([On("dot", message=2, do=drop())], features=CHUNKING) as server:
        several = window("rr-r")
        with session(server, chunking=True) as held:
            held.send_all(several)
        assert outcomes(several) == [SENT, UNKNOWN, NOT_SENT, NOT_SENT]
        assert several[2].started == 0


# The last recipients share a write with the chunk, the sender does not.
@pytest.mark.parametrize(("phase", "chunks"), [("mail", 0), ("rcpt", 1)])
def test_a_message_with_many_recipients_may_be_refused_before_its_chunk(
    phase: Any, chunks: int
) -> None:
    many = [f"{number}@x.test" for number in range(120)]
    one = transaction(*many, repeatable=True)
    two = transaction("two@x.test", repeatable=True)
    script = [On(phase, message=1, do=reply(550))]
    with FaultServer(script, features=CHUNKING) as server:
        with session(server, chunking=True) as held:
            held.send(one, [two])
            # What follows is not written behind a message that has ended.
            assert one.followed is two.pipelined is (chunks == 1)
            held.send(two)
        assert outcomes([one, two]) == [NOT_SENT, SENT]
        assert spoken(server).count("BDAT") == chunks + 1
        assert server.violations == []


# -- losses and early replies ----------------------------------------------------------


def test_a_chunk_refused_before_its_end_is_completed() -> None:
    script = [On("mail", message=1, do=reply(552, "5.3.4 too big"))]
    with FaultServer(script, features=CHUNKING, rcvbuf=4096) as server:
        with session(server, chunking=True) as held:
            # More than all buffers hold: the refusal comes before the last octets go.
            one, two = transaction("1@x.test", content=BIG), transaction("2@x.test")
            held.send_all([one, two])
            assert outcomes([one, two]) == [NOT_SENT, SENT]
            assert one.phase is Phase.MAIL
        assert server.delivered == {"2@x.test": 1}
        assert server.connections == 1
        assert server.violations == []


EARLY_552, EARLY_250 = raw(b"250 ok\r\n552 5.3.4 no\r\n"), raw(b"250 ok\r\n250 ok\r\n")


@pytest.mark.parametrize(
    ("phase", "do", "body", "end", "status"),
    [
        ("mail", hang(), normal, Phase.CONTENT, None),
        ("mail", reply(552), hang(), Phase.MAIL, 552),
        ("rcpt", EARLY_552, hang(), Phase.CONTENT, 552),
        ("rcpt", EARLY_552, normal, Phase.CONTENT, 552),
        ("rcpt", EARLY_250, hang(), Phase.RCPT, None),
        ("rcpt", EARLY_250, normal, Phase.RCPT, None),
    ],
    ids=[
        *("silence", "refusal and silence", "early refusal and silence"),
        *("early refusal", "early success and silence", "early success"),
    ],
)
def test_an_incomplete_chunk_is_not_sent_whatever_the_server_says(
    phase: Any, do: Action, body: Action, end: Phase, status: int | None
) -> None:
    script = [On(phase, do=do), On("body", do=body)]
    with FaultServer(script, features=CHUNKING, rcvbuf=4096) as server:
        # More than all buffers hold: the replies are there before the last octets.
        one = send_one(server, transaction(content=BIG), chunking=True, timeout=SHORT)
        assert (one.outcome, one.phase, code(one)) == (NOT_SENT, end, status)
        assert (one.failure is None) is (status is not None)
    assert server.deliveries == []


# -- after idling ----------------------------------------------------------------------


@pytest.mark.parametrize("do", cases(silent=hang(), reset=drop(rst=True)))
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
        assert b"BDAT" not in server.received[1]


# Exim would answer nothing before the chunk is complete. A message that can be repeated
# needs no reply first.
@pytest.mark.parametrize("repeatable", cases(with_key=True, without_key=False))
def test_after_idling_mail_and_rcpt_are_written_before_a_chunk_without_a_key(
    repeatable: Any,
) -> None:
    with FaultServer(features=CHUNKING) as server:
        one = transaction("1@x.test", "2@x.test", repeatable=repeatable)
        one.after_idle = True
        received = received_at(server, "mail", one, transaction(), chunking=True)
        end = b"RCPT TO:<1@x.test>\r\nRCPT TO:<2@x.test>\r\n"
        assert received.endswith(end) is (b"BDAT" not in received) is not repeatable
