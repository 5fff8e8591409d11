"""The relay's side of SMTP, octet by octet: logins, groups, content, repetitions."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from django_lettermint.testing import Relay
from tests.testing.relay_client import MESSAGE, RawClient

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTS = {"plaintext": 0}
MAIL = b"MAIL FROM:<a@example.com>\r\n"
RCPT = b"RCPT TO:<b@example.com>\r\n"
GROUP = MAIL + RCPT + b"DATA\r\n"
END = b".\r\n"
SMALL = 100


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay(ports=PORTS, chunking=True) as running:
        yield running


@pytest.fixture
def raw(relay: Relay) -> Iterator[RawClient]:
    with RawClient(relay) as connection:
        yield connection


@pytest.fixture
def narrow() -> Iterator[RawClient]:
    """Log in at a relay that takes messages of at most 100 octets."""
    with (
        Relay(ports=PORTS, chunking=True, max_size=SMALL) as relay,
        RawClient(relay) as connection,
    ):
        yield connection


def bdat(content: bytes, *, last: bool = True) -> bytes:
    return b"BDAT %d%s\r\n" % (len(content), b" LAST" if last else b"") + content


def keyed(text: str = "Hello.") -> bytes:
    """Return the commands of a message with an idempotency key."""
    content = f"Idempotency-Key: k\r\nSubject: Hi\r\n\r\n{text}\r\n"
    return MAIL + RCPT + bdat(content.encode())


def b64(text: str) -> bytes:
    return base64.b64encode(text.encode())


# Logins


@pytest.mark.parametrize(
    ("dialogue", "code"),
    [
        ([b"AUTH PLAIN", b64("\0lettermint\0lm_test_token")], "235 2.7.0"),
        ([b"auth plain " + b64("\0lettermint\0lm_test_token")], "235 2.7.0"),
        ([b"AUTH LOGIN", b64("lettermint"), b64("lm_test_token")], "235 2.7.0"),
        ([b"AUTH LOGIN " + b64("lettermint"), b64("lm_test_token")], "235 2.7.0"),
        ([b"AUTH PLAIN " + b64("\0somebody\0lm_test_token")], "535 5.7.8"),
        ([b"AUTH PLAIN " + b64("\0lettermint\0wrong")], "535 5.7.8"),
        ([b"AUTH CRAM-MD5", b64("lettermint 0123")], "535 5.7.8"),
        ([b"AUTH CRAM-MD5 " + b64("lettermint 0123")], "501 5.7.0"),
        ([b"AUTH PLAIN ="], "501 5.5.2"),
        ([b"AUTH PLAIN " + b64("no parts")], "501 5.5.2"),
        ([b"AUTH LOGIN", b"*"], "501 5.7.0"),
        ([b"AUTH LOGIN", b"not base64"], "501 5.5.2"),
        ([b"AUTH XOAUTH2"], "504 5.5.4"),
    ],
)
def test_a_login_needs_the_right_answers(
    relay: Relay, dialogue: list[bytes], code: str
) -> None:
    *steps, last = dialogue
    with RawClient(relay, login=False) as raw:
        assert raw.command(b"HELO me")[:3] == "250"
        assert raw.command(b"AUTH PLAIN")[:3] == "503"
        raw.command(b"EHLO me")
        for step in steps:
            assert raw.command(step)[:3] == "334"
        assert raw.command(last)[:9] == code
        allowed = raw.command(MAIL.strip())
    right = code.startswith("235")
    assert allowed[:9] == ("250 2.1.0" if right else "530 5.7.0")
    assert (relay.logins.attempts, relay.logins.successes) == (1, right)


# Commands


@pytest.mark.parametrize(
    ("before", "line", "code"),
    [
        (b"", b"WHAT", "500 5.5.2"),
        (b"", b"NOOP " + b"x" * 20_000, "500 5.5.2"),
        (b"", b"VRFY somebody", "252 2.1.5"),
        (b"", b"QUIT now", "501 5.5.4"),
        (b"", b"AUTH PLAIN", "503 5.5.1"),
        (b"", b"MAIL FROM:a@example.com", "501 5.5.4"),
        (b"", b"MAIL TO:<a@example.com>", "501 5.5.4"),
        (b"", b"MAIL FROM:<a@example.com> SIZE=big", "501 5.5.4"),
        (b"", b"MAIL FROM:<a@example.com> SIZE=26214401", "552 5.3.4"),
        (b"", b"MAIL FROM:<a@example.com> BODY=9BIT", "501 5.5.4"),
        (b"", b"MAIL FROM:<a@example.com> RET=FULL", "555 5.5.4"),
        (b"", b"MAIL FROM:<\xc3\xb6@example.com>", "553 5.6.7"),
        (b"", RCPT.strip(), "503 5.5.1"),
        (b"", b"DATA", "503 5.5.1"),
        (b"", b"DATA now", "501 5.5.4"),
        (b"", b"BDAT 1 2", "501 5.5.4"),
        (MAIL, MAIL.strip(), "503 5.5.1"),
        (MAIL, b"RCPT TO:<>", "501 5.1.3"),
        (MAIL, b"RCPT TO:<b@example.com> NOTIFY=NEVER", "555 5.5.4"),
        (MAIL, b"RCPT TO:<\xc3\xb6@example.com>", "553 5.6.7"),
        (MAIL, b"DATA", "554 5.5.1"),
    ],
)
def test_a_command_that_is_malformed_or_out_of_place_changes_nothing(
    raw: RawClient, before: bytes, line: bytes, code: str
) -> None:
    if before:
        raw.command(before.strip())
    assert raw.command(line)[:9] == code
    assert raw.codes(b"RSET\r\n" + GROUP, 4) == ["250", "250", "250", "354"]


def test_quoted_and_non_ascii_addresses_are_read(relay: Relay, raw: RawClient) -> None:
    mail = "MAIL FROM:<å@example.com> SMTPUTF8 BODY=8BITMIME\r\n".encode()
    recipient = 'RCPT TO:<"ö b\\">"@example.com>\r\n'.encode()
    assert raw.codes(mail + recipient + bdat(MESSAGE), 3) == ["250"] * 3
    (message,) = relay.messages
    assert (message.smtputf8, message.body_8bit) == (True, True)
    assert message.mail_from == "å@example.com"
    assert message.recipients == ('"ö b\\">"@example.com',)


# Groups


def test_the_replies_to_a_group_leave_in_one_write(raw: RawClient) -> None:
    raw.socket.sendall(GROUP)
    assert raw.socket.recv(4096).count(b"\r\n") == 3


def test_commands_behind_quit_are_not_answered(raw: RawClient) -> None:
    assert raw.codes(b"NOOP\r\nQUIT\r\nNOOP\r\n", 3) == ["250", "221", ""]


def test_a_group_and_content_are_one_round_trip(relay: Relay, raw: RawClient) -> None:
    before = relay.statistics.round_trips
    raw.codes(GROUP, 3)
    assert raw.codes(MESSAGE + END + GROUP, 4) == ["250", "250", "250", "354"]
    raw.codes(b"second\r\n" + END, 1)
    large = b"x" * 78 + b"\r\n" * 100_000
    raw.codes(MAIL + RCPT + bdat(large), 3)
    now = relay.statistics
    assert now.round_trips == before + 4
    assert [each.content for each in relay.messages] == [MESSAGE, b"second\r\n", large]
    expected = {"EHLO": 1, "AUTH": 1, "MAIL": 3, "RCPT": 3, "DATA": 2, "BDAT": 1}
    assert now.commands == expected


# Content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"ends with a dot.\r\nand again.\r\n",
        b".\r\n",
        b"..\r\n.x\r\n",
        b"a\r\n.\r\nb\r\n",
        b"bare\n.\nlf\r.\r\n",
    ],
)
def test_each_octet_is_taken(relay: Relay, raw: RawClient, content: bytes) -> None:
    stuffed = b"." + content if content.startswith(b".") else content
    raw.codes(GROUP, 3)
    assert raw.codes(stuffed.replace(b"\r\n.", b"\r\n..") + END, 1) == ["250"]
    assert raw.codes(MAIL + RCPT + bdat(content), 3) == ["250"] * 3
    assert [each.content for each in relay.messages] == [content, content]
    assert [each.chunked for each in relay.messages] == [False, True]


def test_content_may_come_in_pieces_cut_anywhere(relay: Relay, raw: RawClient) -> None:
    raw.codes(GROUP, 3)
    for octet in b"a.\r\n..b\r\n.\r\n":
        raw.socket.sendall(bytes([octet]))
    assert raw.reply()[:3] == "250"
    assert relay.messages[0].content == b"a.\r\n.b\r\n"


def test_a_message_may_come_in_chunks(relay: Relay, raw: RawClient) -> None:
    chunks = bdat(b"one\r", last=False) + bdat(b"\ntwo\r\n", last=False) + bdat(b"")
    assert raw.codes((MAIL + RCPT + chunks) * 2, 10) == ["250"] * 10
    assert [each.content for each in relay.messages] == [b"one\r\ntwo\r\n"] * 2


def test_a_chunk_out_of_place_is_read_and_refused(relay: Relay, raw: RawClient) -> None:
    without = bdat(MESSAGE) + MAIL + RCPT + bdat(MESSAGE)
    assert raw.codes(without, 4) == ["503", "250", "250", "250"]
    late = MAIL + bdat(b"x", last=False) + RCPT + bdat(b"y")
    assert raw.codes(late, 4) == ["250", "554", "250", "503"]
    assert len(relay.messages) == 1
    raw.codes(MAIL + RCPT + bdat(b"one", last=False), 3)
    assert raw.command(b"DATA").startswith("503 ")


@pytest.mark.parametrize("size", [SMALL + 1, 2 * SMALL + 10, 200_000])
def test_a_message_that_is_too_large_is_refused_after_its_end(
    narrow: RawClient, size: int
) -> None:
    content = (b"x" * 98 + b"\r\n") * (size // 100 + 1)
    content = content[: size - 2] + b"\r\n"
    narrow.codes(GROUP, 3)
    assert narrow.codes(content + END, 1) == ["552"]
    assert narrow.codes(MAIL + RCPT + bdat(content), 3) == ["250", "250", "552"]
    assert narrow.codes(MAIL + RCPT + bdat(b"\r\n" * 50), 3) == ["250"] * 3


def test_chunks_count_together_and_a_refusal_needs_rset(narrow: RawClient) -> None:
    too_much = MAIL + RCPT + bdat(b"\r\n" * 30, last=False) * 2 + bdat(b"") + MAIL
    assert narrow.codes(too_much, 6) == ["250", "250", "250", "552", "503", "250"]
    assert narrow.codes(b"RSET\r\n" + GROUP, 4) == ["250", "250", "250", "354"]


@pytest.mark.parametrize(("octets", "code"), [(998, "250"), (999, "500")])
def test_the_longest_line_is_998_octets(raw: RawClient, octets: int, code: str) -> None:
    content = bdat(b"x" * octets + b"\r\n")
    assert raw.codes(MAIL + RCPT + content, 3) == ["250", "250", code]


# Idempotency


def test_a_repeated_message_gets_the_first_reply_and_is_delivered_once(
    relay: Relay, raw: RawClient
) -> None:
    raw.socket.sendall(keyed() * 2)
    replies = [raw.reply() for _ in range(6)]
    assert replies[2] == replies[5] == f"250 2.0.0 Queued as {relay.messages[0].id}"
    assert len(relay.messages) == relay.statistics.replays == 1
    assert raw.codes(keyed("Else."), 3) == ["250", "250", "554"]
    assert len(relay.messages) == relay.statistics.replays == 1


def test_a_refused_message_uses_up_no_key(relay: Relay, raw: RawClient) -> None:
    wrong = b"X-LM-Tag: a.b\r\nIdempotency-Key: k\r\n\r\n"
    assert raw.codes(MAIL + RCPT + bdat(wrong) + keyed(), 6)[2::3] == ["550", "250"]
    assert len(relay.messages) == 1


def test_a_message_in_progress_keeps_its_key(relay: Relay, raw: RawClient) -> None:
    relay.reply_delay = 30
    assert relay.reply_delay == 30
    raw.socket.sendall(keyed())
    relay.wait_until(lambda now: now.in_progress == 1)
    with RawClient(relay) as second:
        assert second.codes(keyed(), 3) == ["250", "250", "451"]
    relay.stop()
    relay.reply_delay = 0
    with relay, RawClient(relay) as third:
        assert third.codes(keyed(), 3) == ["250"] * 3
    assert len(relay.messages) == 1
    assert relay.statistics.in_progress == 0


def test_a_final_reply_can_be_lost(relay: Relay, raw: RawClient) -> None:
    relay.drop_final_replies()
    raw.codes(MAIL + RCPT, 2)
    assert raw.codes(keyed().removeprefix(MAIL + RCPT), 1) == [""]
    with RawClient(relay) as second:
        assert second.codes(keyed(), 3) == ["250"] * 3
    assert len(relay.messages) == relay.statistics.replays == 1


def test_a_message_is_taken_although_its_client_leaves(relay: Relay) -> None:
    relay.reply_delay = 0.5
    with RawClient(relay) as raw:
        raw.socket.sendall(MAIL + RCPT + bdat(MESSAGE))
        relay.wait_until(lambda now: now.in_progress == 1)
    assert relay.wait_for(1)[0].content == MESSAGE
