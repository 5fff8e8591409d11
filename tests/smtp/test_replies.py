"""Which lines are an SMTP reply, and what its code and text say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.smtp.replies import (
    MAX_TEXT,
    ProtocolError,
    Reply,
    ServerClosing,
    parse,
    sanitise,
)


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        ([b"250 2.1.0 ok"], Reply(250, ("2.1.0 ok",))),
        ([b"250"], Reply(250, ("",))),
        ([b"599  spaces around "], Reply(599, ("spaces around",))),
        ([b"250-one", b"250-", b"250 two"], Reply(250, ("one", "", "two"))),
    ],
)
def test_each_line_of_a_reply_is_a_code_and_a_text(
    lines: list[bytes], reply: Reply
) -> None:
    assert parse(tuple(lines)) == reply


NO_LINES = [
    *(b"25", b"2500 ok", b" 250 ok", b"850 x", b"150 x", b"250ok", b"+25 ok", b"2_0 x"),
    *(b"", b"ok", b"250\tok", b"\xb2\xb5\xb0 ok", b"2\xd9\xa05 ok", b"HTTP/1.1 400 x"),
]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        *(((line,), "not an SMTP reply") for line in NO_LINES),
        ((b"250-a", b"550 b"), "changes its code: 250, 550"),
        ((b"250-a",), "cut off"),
        ((b"250 a", b"250 b"), "cut off"),
    ],
)
def test_other_lines_are_an_error(lines: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse(lines)


@pytest.mark.parametrize("line", [b"<" + b"x" * 4096, b"250-<" + b"x" * 4096])
def test_an_error_shows_the_beginning_of_a_line(line: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        parse((line,))
    assert str(raised.value).endswith(repr(line[:80].decode()))


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        (200, ["positive"]),
        (221, ["positive", "closing"]),
        (299, ["positive"]),
        (300, []),
        (354, []),
        (400, ["negative"]),
        (421, ["negative", "closing"]),
        (521, ["negative"]),
    ],
)
def test_a_code_tells_success_refusal_and_the_end_of_the_connection(
    code: int, kinds: list[str]
) -> None:
    reply = Reply(code, ("4.4.2 closing connection",))
    names = ("positive", "negative", "closing")
    assert [name for name in names if getattr(reply, name)] == kinds


@pytest.mark.parametrize(
    ("code", "text", "enhanced", "bad_connection"),
    [
        (550, "5.1.1 no such user", "5.1.1", False),
        (550, "5.1.1", "5.1.1", False),
        (550, "5.111.222 x", "5.111.222", False),
        (550, "4.1.1 x", None, False),
        (550, "5.1.1x", None, False),
        (550, "5.1111.1 x", None, False),
        (550, "5.\u0661.1 x", None, False),
        (550, "no 5.1.1", None, False),
        (421, "4.4.2 idle", "4.4.2", True),
        (554, "5.4.2 x", "5.4.2", True),
        (250, "2.4.2 odd", "2.4.2", False),
        (451, "5.4.2 odd", None, False),
        (451, "4.4.1 no answer", "4.4.1", False),
        (451, "4.14.2 other", "4.14.2", False),
        (451, "4.4.22 other", "4.4.22", False),
    ],
)
def test_an_enhanced_code_must_agree_with_the_reply_code(
    code: int, text: str, enhanced: str | None, bad_connection: Any
) -> None:
    reply = Reply(code, (text,))
    assert (reply.enhanced_code, reply.bad_connection) == (enhanced, bad_connection)


def test_a_reply_is_shown_in_one_line_of_limited_length() -> None:
    assert str(Reply(250, ("relay.test", "", "SIZE 9"))) == "250 relay.test SIZE 9"
    assert str(Reply(451)) == "451"
    assert len(Reply(550, ("x" * 4096,)).text) == MAX_TEXT
    closing = ServerClosing(Reply(421, ("4.3.2 shutting down",)))
    assert str(closing) == "the server is closing: 421 4.3.2 shutting down"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x1b[31mred\x00", "?[31mred?"),
        (b"a\rb\x0bc\x85", "a?b?c\N{REPLACEMENT CHARACTER}"),
        ("caf\xe9 \u65e5\u672c \U0001f600".encode(), "caf\xe9 \u65e5\u672c \U0001f600"),
        ("\u202eevil\u2028line\u200bzero\x9b".encode(), "?evil?line?zero?"),
        (b"  blanks\tand tabs\t", "blanks and tabs"),
    ],
)
def test_texts_are_safe_for_terminals_and_logs(raw: bytes, text: str) -> None:
    assert sanitise(raw) == text


@given(st.binary())
def test_every_text_becomes_printable(raw: bytes) -> None:
    assert sanitise(raw).isprintable()
