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
    stall,
)
from tests.sending import (
    SHORT,
    cases,
    session,
    spoken,
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
    from django_lettermint.smtp import MailTransaction
    from django_lettermint.smtp.stream import SMTPStream
    from tests.faults import Action


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


@pytest.mark.parametrize(
    ("features", "options"),
    [(("CHUNKING",), {}), (CHUNKING, {"pipelining": False})],
    ids=["not offered", "switched off"],
)
@pytest.mark.parametrize("repeatable", cases(with_key=True, without_key=False))
def test_without_pipelining_a_chunk_waits_for_each_reply(
    repeatable: Any, features: tuple[str, ...], options: dict[str, bool]
) -> None:
    with FaultServer(features=features) as server:
        several = [
            transaction(f"{number}@x.test", repeatable=repeatable)
            for number in range(3)
        ]
        with session(server, chunking=True, **options) as held:
            held.send_all(several)
        assert outcomes(several) == [SENT] * 3
        assert not any(each.pipelined for each in several)
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


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT])
def test_a_chunk_without_an_accepted_recipient_is_not_sent(phase: Phase) -> None:
    late = stall(SHORT, reply(421, "4.7.0 limit reached", close=True))
    script = [On("mail" if phase is Phase.MAIL else "rcpt", do=late)]
    with FaultServer(script, features=CHUNKING) as server:
        one = send_one(server, transaction(), chunking=True)
        assert (one.outcome, one.phase) == (NOT_SENT, phase)
        assert server.deliveries == []


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
            held.send(several[0], several[1:])
            # Nothing is pending when the one that is too large fails.
            assert held.reusable
            assert several[2].started == 0
            held.send(several[1], several[2:])
            held.send(several[2])
            assert outcomes(several) == [SENT, NOT_SENT, SENT]
            assert several[1].phase is Phase.MESSAGE
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}


# The last recipients share a write with the chunk, the sender does not.
@pytest.mark.parametrize(("phase", "chunks"), [("mail", 0), ("rcpt", 1)])
def test_a_message_with_many_recipients_may_be_refused_before_its_chunk(
    phase: Any, chunks: int
) -> None:
    many = [f"{number}@x.test" for number in range(120)]
    with FaultServer(
        [On(phase, message=1, do=reply(550))], features=CHUNKING
    ) as server:
        with session(server, chunking=True) as held:
            one = transaction(*many, repeatable=True)
            two = transaction("two@x.test", repeatable=True)
            held.send(one, [two])
            assert one.outcome is NOT_SENT
            assert held.needs_rset
            # What follows is not written behind a message that has ended.
            assert one.followed is two.pipelined is (chunks == 1)
            held.send(two)
            assert two.outcome is SENT
        assert spoken(server).count("BDAT") == chunks + 1
        assert server.delivered == {"two@x.test": 1}
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


def test_a_chunk_that_stalls_before_the_first_reply_ends_in_its_content() -> None:
    silent = [On("mail", do=hang())]
    with FaultServer(silent, features=CHUNKING, rcvbuf=4096) as server:
        one = send_one(server, transaction(content=BIG), chunking=True, timeout=SHORT)
        assert (one.outcome, one.phase) == (NOT_SENT, Phase.CONTENT)
        assert isinstance(one.failure, TimeoutError)


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


@pytest.mark.parametrize("body", cases(stalls=hang(), is_read=normal))
@pytest.mark.parametrize(
    ("early", "code"), [(b"552 5.3.4 no\r\n", 552), (b"250 ok\r\n", None)], ids=str
)
def test_a_reply_to_an_incomplete_chunk_does_not_confirm_it(
    early: bytes, code: int | None, body: Action
) -> None:
    script = [On("rcpt", do=raw(b"250 ok\r\n" + early)), On("body", do=body)]
    with FaultServer(script, features=CHUNKING, rcvbuf=4096) as server:
        # More than all buffers hold: the replies are there before the last octets.
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
