"""The local relay's transactions, octet by octet: groups, BDAT, refusals, repetitions."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from django_lettermint.testing import Relay
from tests.testing.relay_client import MESSAGE, RawClient, send

if TYPE_CHECKING:
    from collections.abc import Iterator

MAIL = b"MAIL FROM:<a@example.com>\r\n"
RCPT = b"RCPT TO:<b@example.com>\r\n"
GROUP = MAIL + RCPT + b"DATA\r\n"
END = b".\r\n"
SMALL = 100


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay(chunking=True) as running:
        yield running


@pytest.fixture
def raw(relay: Relay) -> Iterator[RawClient]:
    with RawClient(relay) as connection:
        yield connection


@pytest.fixture
def narrow() -> Iterator[RawClient]:
    """Log in at a relay that takes messages of at most 100 octets."""
    with Relay(chunking=True, max_size=SMALL) as relay, RawClient(relay) as connection:
        yield connection


def bdat(content: bytes, *, last: bool = True) -> bytes:
    return b"BDAT %d%s\r\n" % (len(content), b" LAST" if last else b"") + content


def keyed(key: str, text: str = "Hello.") -> bytes:
    return f"Idempotency-Key: {key}\r\nSubject: Hi\r\n\r\n{text}\r\n".encode()


def test_a_group_of_commands_may_come_in_one_write(raw: RawClient) -> None:
    raw.write(b"RSET\r\n" + GROUP)
    assert raw.codes(4) == ["250", "250", "250", "354"]


def test_the_replies_to_a_group_come_in_one_record(raw: RawClient) -> None:
    raw.write(GROUP)
    assert raw.socket.recv(4096).count(b"\r\n") == 3


def test_the_next_group_may_ride_behind_the_content(
    relay: Relay, raw: RawClient
) -> None:
    raw.write(GROUP)
    raw.codes(3)
    before = relay.statistics.round_trips
    raw.write(MESSAGE + END + GROUP)
    assert raw.codes(4) == ["250", "250", "250", "354"]
    raw.write(b"second\r\n" + END)
    assert raw.codes(1) == ["250"]
    assert [m.content for m in relay.messages] == [MESSAGE, b"second\r\n"]
    assert relay.statistics.round_trips == before + 2


def test_what_follows_starttls_or_quit_in_a_group_is_answered_before(
    raw: RawClient,
) -> None:
    raw.write(b"NOOP\r\nQUIT\r\n")
    assert raw.codes(3) == ["250", "221", ""]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"a\r\n",
        b"ends with a dot.\r\nand again.\r\n",
        b".\r\n",
        b"..\r\n.x\r\n",
        b"a\r\n.\r\nb\r\n",
        b"bare\n.\nlf\r.\r\n",
    ],
)
def test_content_is_taken_octet_by_octet(
    relay: Relay, raw: RawClient, content: bytes
) -> None:
    stuffed = b"." + content if content.startswith(b".") else content
    raw.write(GROUP)
    raw.codes(3)
    raw.write(stuffed.replace(b"\r\n.", b"\r\n..") + END)
    assert raw.codes(1) == ["250"]
    raw.write(MAIL + RCPT + bdat(content))
    assert raw.codes(3) == ["250", "250", "250"]
    assert [message.content for message in relay.messages] == [content, content]
    assert [message.chunked for message in relay.messages] == [False, True]


def test_content_may_come_in_pieces_cut_anywhere(relay: Relay, raw: RawClient) -> None:
    raw.write(GROUP)
    raw.codes(3)
    for octet in b"a.\r\n..b\r\n.\r\n":
        raw.write(bytes([octet]))
    assert raw.codes(1) == ["250"]
    assert relay.messages[0].content == b"a.\r\n.b\r\n"


def test_several_messages_by_bdat_may_be_in_flight(
    relay: Relay, raw: RawClient
) -> None:
    raw.write(b"".join(MAIL + RCPT + bdat(b"%d\r\n" % n) for n in range(20)))
    assert raw.codes(60) == ["250"] * 60
    assert [m.content for m in relay.messages] == [b"%d\r\n" % n for n in range(20)]


def test_a_message_may_come_in_several_chunks(relay: Relay, raw: RawClient) -> None:
    chunks = bdat(b"one\r", last=False) + bdat(b"\ntwo\r\n", last=False)
    raw.write(MAIL + RCPT + chunks + bdat(b""))
    assert raw.codes(5) == ["250"] * 5
    assert relay.messages[0].content == b"one\r\ntwo\r\n"


def test_a_message_by_bdat_in_one_write_is_one_round_trip(
    relay: Relay, raw: RawClient
) -> None:
    before = relay.statistics.round_trips
    for size in (1, 20_000):
        raw.write(MAIL + RCPT + bdat(b"x" * 78 + b"\r\n" * size))
        raw.codes(3)
    assert relay.statistics.round_trips == before + 2


def test_data_cannot_follow_a_chunk(raw: RawClient) -> None:
    raw.write(MAIL + RCPT + bdat(b"one", last=False))
    raw.codes(3)
    assert raw.command(b"DATA").startswith("503 ")


def test_a_chunk_without_recipients_is_read_and_refused(
    relay: Relay, raw: RawClient
) -> None:
    raw.write(bdat(MESSAGE) + MAIL + RCPT + bdat(MESSAGE))
    assert raw.codes(4) == ["503", "250", "250", "250"]
    raw.write(MAIL + bdat(b"x", last=False) + RCPT + bdat(b"y"))
    assert raw.codes(4) == ["250", "554", "250", "503"]
    assert len(relay.messages) == 1


def test_a_command_that_is_not_bdat_as_it_should_be_is_refused(raw: RawClient) -> None:
    assert raw.command(b"BDAT").startswith("501 ")
    assert raw.command(b"BDAT 1 2").startswith("501 ")


def test_bdat_is_unknown_when_it_is_not_offered() -> None:
    with Relay() as relay, RawClient(relay) as raw:
        assert raw.command(b"BDAT 0 LAST").startswith("500 5.5.2 ")


def test_data_needs_a_recipient_and_no_argument(raw: RawClient) -> None:
    assert raw.command(b"DATA").startswith("503 5.5.1 ")
    assert raw.command(b"DATA now").startswith("501 5.5.4 ")


@pytest.mark.parametrize(
    ("before", "line", "code"),
    [
        (b"", b"WHAT", "500"),
        (b"", b"NOOP " + b"x" * 20_000, "500"),
        (b"", b"VRFY somebody", "252"),
        (b"", b"MAIL FROM:a@example.com", "501"),
        (b"", b"MAIL TO:<a@example.com>", "501"),
        (b"", b"MAIL FROM:<a@example.com> SIZE=big", "501"),
        (b"", b"MAIL FROM:<a@example.com> BODY=9BIT", "501"),
        (b"", b"MAIL FROM:<a@example.com> RET=FULL", "555"),
        (b"", RCPT.strip(), "503"),
        (MAIL, MAIL.strip(), "503"),
        (MAIL, b"RCPT TO:<>", "501"),
        (MAIL, b"RCPT TO:<b@example.com> NOTIFY=NEVER", "555"),
        (MAIL, b"RCPT TO:<\xc3\xb6@example.com>", "553"),
    ],
)
def test_what_is_malformed_or_out_of_place_is_refused(
    raw: RawClient, before: bytes, line: bytes, code: str
) -> None:
    if before:
        raw.command(before.strip())
    assert raw.command(line)[:3] == code
    assert raw.command(b"RSET").startswith("250 ")
    raw.write(GROUP)
    assert raw.codes(3) == ["250", "250", "354"]


@pytest.mark.parametrize("size", [SMALL + 1, 2 * SMALL + 10, 200_000])
def test_a_message_that_is_too_big_is_refused_after_its_end(
    narrow: RawClient, size: int
) -> None:
    line = b"x" * 98 + b"\r\n"
    content = (line * (size // 100 + 1))[: size - 2] + b"\r\n"
    narrow.write(GROUP)
    narrow.codes(3)
    narrow.write(content + END)
    assert narrow.reply().startswith("552 5.3.4 ")
    narrow.write(MAIL + RCPT + bdat(content))
    assert narrow.codes(3) == ["250", "250", "552"]
    narrow.write(MAIL + RCPT + bdat(b"\r\n" * 50))
    assert narrow.codes(3) == ["250", "250", "250"]


def test_chunks_count_together_and_after_a_refusal_rset_is_needed(
    narrow: RawClient,
) -> None:
    too_much = bdat(b"\r\n" * 30, last=False) * 2
    narrow.write(MAIL + RCPT + too_much + bdat(b"") + MAIL)
    assert narrow.codes(6) == ["250", "250", "250", "552", "503", "250"]
    narrow.write(b"RSET\r\n" + GROUP)
    assert narrow.codes(4) == ["250", "250", "250", "354"]


def test_the_longest_line_has_998_octets(raw: RawClient) -> None:
    raw.write(MAIL + RCPT + bdat(b"x" * 998 + b"\r\n"))
    assert raw.codes(3) == ["250", "250", "250"]
    raw.write(MAIL + RCPT + bdat(b"x" * 999 + b"\r\n"))
    assert raw.codes(3) == ["250", "250", "500"]


def test_a_repeated_message_is_answered_as_before_and_not_delivered(
    relay: Relay, raw: RawClient
) -> None:
    raw.write((MAIL + RCPT + bdat(keyed("k"))) * 2)
    replies = [raw.reply() for _ in range(6)]
    assert replies[2] == replies[5] == f"250 2.0.0 Queued as {relay.messages[0].id}"
    assert len(relay.messages) == relay.statistics.replays == 1
    assert relay.messages[0].idempotency_key == "k"


def test_a_key_with_other_content_is_refused(relay: Relay, raw: RawClient) -> None:
    raw.write(MAIL + RCPT + bdat(keyed("k")) + MAIL + RCPT + bdat(keyed("k", "Else.")))
    assert raw.codes(6) == ["250"] * 5 + ["554"]
    assert len(relay.messages) == 1


def test_a_refused_message_uses_up_no_key(relay: Relay, raw: RawClient) -> None:
    raw.write(MAIL + RCPT + bdat(b"X-LM-Tag: a.b\r\n" + keyed("k")))
    assert raw.codes(3) == ["250", "250", "550"]
    send(relay, keyed("k"))
    assert len(relay.messages) == 1


def test_a_repetition_while_the_first_is_worked_on_is_put_off(
    relay: Relay, raw: RawClient
) -> None:
    relay.reply_delay = 30
    assert relay.reply_delay == 30
    raw.write(MAIL + RCPT + bdat(keyed("k")))
    relay.wait_until(lambda now: now.in_progress == 1)
    with RawClient(relay) as second:
        second.write(MAIL + RCPT + bdat(keyed("k")))
        assert second.codes(3) == ["250", "250", "451"]


def test_a_message_whose_relay_stops_in_between_has_not_used_its_key() -> None:
    relay = Relay(chunking=True, reply_delay=30)
    with relay, RawClient(relay) as raw:
        raw.write(MAIL + RCPT + bdat(keyed("k")))
        relay.wait_until(lambda now: now.in_progress == 1)
    relay.reply_delay = 0
    with relay:
        send(relay, keyed("k"))
    assert len(relay.messages) == 1
    assert relay.statistics.in_progress == 0


def test_a_message_is_worked_on_to_the_end_when_its_client_goes(relay: Relay) -> None:
    relay.reply_delay = 0.5
    with RawClient(relay) as raw:
        raw.write(MAIL + RCPT + bdat(MESSAGE))
        relay.wait_until(lambda now: now.in_progress == 1)
    assert relay.wait_for(1)[0].content == MESSAGE


def test_a_final_reply_can_be_lost(relay: Relay, raw: RawClient) -> None:
    relay.drop_final_replies()
    raw.write(MAIL + RCPT)
    raw.codes(2)
    raw.write(bdat(keyed("k")))
    with pytest.raises((ConnectionResetError, AssertionError)):
        assert raw.reply() != ""
    send(relay, keyed("k"))
    assert len(relay.messages) == relay.statistics.replays == 1


def test_commands_and_round_trips_are_counted(relay: Relay) -> None:
    send(relay)
    now = relay.statistics
    verbs = ("EHLO", "AUTH", "MAIL", "RCPT", "DATA", "QUIT")
    assert now.commands == dict.fromkeys(verbs, 1)
    # The answer to CRAM-MD5's challenge, and the content.
    assert now.round_trips == len(verbs) + 2


def test_thinking_messages_of_several_clients_do_not_wait_for_each_other(
    relay: Relay,
) -> None:
    relay.reply_delay = 30
    with ExitStack() as clients:
        for _ in range(4):
            clients.enter_context(RawClient(relay)).write(MAIL + RCPT + bdat(MESSAGE))
        relay.wait_until(lambda now: now.in_progress == 4)
