"""Which lines are an SMTP reply; all others are an error."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from django_lettermint.smtp.replies import (
    MAX_TEXT,
    ProtocolError,
    Reply,
    parse,
    sanitise,
)
from tests.reference_parser import reply_code


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"250 ok", Reply(250, ("ok",))),
        (b"250", Reply(250, ("",))),
        (b"250 ", Reply(250, ("",))),
        (b"354 go", Reply(354, ("go",))),
        (b"599  spaces around ", Reply(599, ("spaces around",))),
        (b"250 2.1.0 ok", Reply(250, ("2.1.0 ok",))),
    ],
)
def test_a_reply_line_is_a_code_and_a_text(line: bytes, reply: Reply) -> None:
    assert parse((line,)) == reply


def test_a_reply_may_have_several_lines() -> None:
    reply = parse((b"250-relay.test", b"250-", b"250 SIZE 1000"))
    assert reply == Reply(250, ("relay.test", "", "SIZE 1000"))
    assert reply.text == "relay.test SIZE 1000"


@pytest.mark.parametrize(
    "line",
    [
        b"25",
        b"2500 ok",
        b" 250 ok",
        b"850 x",
        b"150 x",
        b"250ok",
        b"+25 ok",
        b"2_0 x",
        b"",
        b"ok",
        b"250\tok",
        b"\xb2\xb5\xb0 ok",
        b"2\xd9\xa05 ok",
        b"HTTP/1.1 400 x",
    ],
)
def test_a_line_without_a_valid_code_is_an_error(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="not an SMTP reply"):
        parse((line,))


def test_a_code_that_changes_between_lines_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="changes its code: 250, 550"):
        parse((b"250-a", b"550 b"))


@pytest.mark.parametrize("lines", [[b"250-a"], [b"250 a", b"250 b"]])
def test_a_reply_that_does_not_end_with_its_last_line_is_an_error(
    lines: list[bytes],
) -> None:
    with pytest.raises(ProtocolError, match="cut off"):
        parse(tuple(lines))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (220, "positive"),
        (299, "positive"),
        (354, ""),
        (400, "negative"),
        (599, "negative"),
    ],
)
def test_the_first_digit_says_whether_a_reply_is_positive_or_negative(
    code: int, kind: str
) -> None:
    assert Reply(code).positive is (kind == "positive")
    assert Reply(code).negative is (kind == "negative")


@pytest.mark.parametrize("code", [221, 421])
def test_two_codes_announce_that_the_server_closes(code: int) -> None:
    assert Reply(code, ("bye",)).closing


@pytest.mark.parametrize("code", [220, 250, 354, 420, 451, 521, 554])
def test_no_other_code_announces_that_the_server_closes(code: int) -> None:
    assert not Reply(code, ("4.4.2 closing connection",)).closing


@pytest.mark.parametrize(
    "reply",
    [Reply(421, ("4.4.2 idle",)), Reply(451, ("4.4.2 x",)), Reply(554, ("5.4.2 x",))],
    ids=str,
)
def test_a_refusal_by_the_enhanced_code_of_a_bad_connection(reply: Reply) -> None:
    assert reply.bad_connection


@pytest.mark.parametrize(
    "reply",
    [
        Reply(250, ("2.4.2 odd",)),
        Reply(250, ("4.4.2 odd",)),
        Reply(451, ("5.4.2 odd",)),
        Reply(451, ("4.4.1 no answer",)),
        Reply(451, ("4.14.2 other",)),
        Reply(451, ("4.4.22 other",)),
        Reply(451, ("Timeout 4.4.2",)),
        Reply(451),
    ],
    ids=str,
)
def test_a_reply_without_the_enhanced_code_of_a_bad_connection(reply: Reply) -> None:
    assert not reply.bad_connection


@pytest.mark.parametrize(
    ("code", "text", "enhanced"),
    [
        (550, "5.1.1 no such user", "5.1.1"),
        (550, "5.1.1", "5.1.1"),
        (550, "5.111.222 x", "5.111.222"),
        (550, "4.1.1 x", None),
        (450, "5.1.1 x", None),
        (550, "5.1.1x", None),
        (550, "5.1111.1 x", None),
        (550, "5.\u0661.1 x", None),
        (550, "no 5.1.1", None),
    ],
)
def test_an_enhanced_code_must_agree_with_the_reply_code(
    code: int, text: str, enhanced: str | None
) -> None:
    assert Reply(code, (text,)).enhanced_code == enhanced


def test_a_reply_without_lines_has_no_enhanced_code_and_no_text() -> None:
    assert Reply(250).enhanced_code is None
    assert str(Reply(250)) == "250"
    assert str(Reply(250, ("ok",))) == "250 ok"


def test_a_long_text_is_cut() -> None:
    assert len(parse((b"550 " + b"x" * 4096,)).text) == MAX_TEXT


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x1b[31mred\x00", "?[31mred?"),
        (b"a\rb\x0bc\x85", "a?b?c\N{REPLACEMENT CHARACTER}"),
        (
            "caf\u00e9 \u65e5\u672c \U0001f600".encode(),
            "caf\u00e9 \u65e5\u672c \U0001f600",
        ),
        ("\u202eevil\u2028line\u200bzero\x9b".encode(), "?evil?line?zero?"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"  blanks\t", "blanks"),
    ],
)
def test_texts_are_safe_for_terminals_and_logs(raw: bytes, text: str) -> None:
    assert sanitise(raw) == text


@given(st.binary())
def test_every_text_becomes_printable(raw: bytes) -> None:
    assert sanitise(raw).isprintable()


LINES = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.builds(
            lambda code, between, text: code + between + text,
            st.sampled_from([b"250", b"354", b"550", b"199", b"2 0"]),
            st.sampled_from([b" ", b"-", b"", b"\t"]),
            st.binary(max_size=6),
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(LINES)
@example([b"250-a", b"250 b"])
@example([b"250-a", b"550 b"])
def test_any_lines_are_a_reply_or_an_error_as_for_the_reference_parser(
    lines: list[bytes],
) -> None:
    expected = reply_code(lines)
    if expected is None:
        with pytest.raises(ProtocolError):
            parse(tuple(lines))
    else:
        reply = parse(tuple(lines))
        assert reply.code == expected
        assert len(reply.lines) == len(lines)
