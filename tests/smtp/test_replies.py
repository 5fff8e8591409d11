"""What is an SMTP reply and what is not; any octets are one or the other."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from django_lettermint.smtp.replies import (
    MAX_TEXT,
    ProtocolError,
    Reply,
    is_last,
    parse,
    sanitise,
)


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
def test_a_line_is_a_code_and_a_text(line: bytes, reply: Reply) -> None:
    assert parse((line,)) == reply


def test_a_reply_may_have_several_lines() -> None:
    reply = parse((b"250-relay.test", b"250-", b"250 SIZE 1000"))
    assert reply == Reply(250, ("relay.test", "", "SIZE 1000"))
    assert reply.text == "relay.test SIZE 1000"


@pytest.mark.parametrize(
    "line",
    [b"25", b"2500 ok", b" 250 ok", b"850 x", b"150 x", b"250ok", b"+25 ok", b"2_0 x",
     b"", b"ok", b"250\tok", b"\xb2\xb5\xb0 ok", b"2\xd9\xa05 ok", b"HTTP/1.1 400 x"],
)  # fmt: skip
def test_a_line_without_a_proper_code_is_no_reply(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="not an SMTP reply"):
        parse((line,))


def test_a_code_that_changes_between_lines_is_no_reply() -> None:
    with pytest.raises(ProtocolError, match="changes its code: 250, 550"):
        parse((b"250-a", b"550 b"))


@pytest.mark.parametrize("lines", [[b"250-a"], [b"250 a", b"250 b"]])
def test_lines_that_do_not_end_where_they_say_are_no_reply(lines: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match="cut off"):
        parse(tuple(lines))


def test_a_line_with_a_hyphen_behind_its_code_is_not_the_last() -> None:
    assert not is_last(b"250-more")
    assert is_last(b"250 -")
    assert is_last(b"250")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(220, "positive"), (299, "positive"), (354, ""), (400, "negative"),
     (599, "negative")],
)  # fmt: skip
def test_the_first_digit_decides(code: int, kind: str) -> None:
    assert Reply(code).positive is (kind == "positive")
    assert Reply(code).negative is (kind == "negative")


@pytest.mark.parametrize(
    "reply", [Reply(221), Reply(421), Reply(451, ("4.4.2 idle",))], ids=str
)
def test_a_server_says_goodbye_in_more_than_one_way(reply: Reply) -> None:
    assert reply.closing


@pytest.mark.parametrize(
    "reply",
    [
        Reply(220),
        Reply(250, ("4.4.2 odd",)),
        Reply(451, ("4.4.1 other",)),
        Reply(554),
    ],
    ids=str,
)
def test_a_server_that_says_anything_else_stays(reply: Reply) -> None:
    assert not reply.closing


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
def test_an_enhanced_code_counts_if_it_agrees_with_the_code(
    code: int, text: str, enhanced: str | None
) -> None:
    assert Reply(code, (text,)).enhanced_code == enhanced


def test_a_reply_without_lines_has_no_enhanced_code_and_no_text() -> None:
    assert Reply(250).enhanced_code is None
    assert str(Reply(250)) == "250"
    assert str(Reply(250, ("ok",))) == "250 ok"


def test_a_text_is_bounded() -> None:
    assert len(parse((b"550 " + b"x" * 4096,)).text) == MAX_TEXT


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x1b[31mred\x00", "?[31mred?"),
        (b"a\rb\x0bc\x85", "a?b?c\N{REPLACEMENT CHARACTER}"),
        ("caf\u00e9 \u65e5\u672c \U0001f600".encode(), "caf\u00e9 \u65e5\u672c \U0001f600"),
        ("\u202eevil\u2028line\u200bzero\x9b".encode(), "?evil?line?zero?"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"  blanks\t", "blanks"),
    ],
)  # fmt: skip
def test_a_text_is_safe_in_terminals_and_logs(raw: bytes, text: str) -> None:
    assert sanitise(raw) == text


@given(st.binary())
def test_every_text_comes_out_printable(raw: bytes) -> None:
    assert sanitise(raw).isprintable()


def code_of(lines: list[bytes]) -> int | None:
    """Judge a reply by another way than the parser: octet by octet."""
    codes = set()
    for number, line in enumerate(lines, 1):
        digits = [octet - 48 for octet in line[:3]]
        if len(digits) < 3 or digits[0] not in (2, 3, 4, 5) or max(digits) > 9:
            return None
        if min(digits) < 0:
            return None
        behind = line[3:4]
        if behind not in (b"", b" ", b"-"):
            return None
        if (behind == b"-") == (number == len(lines)):
            return None
        codes.add(100 * digits[0] + 10 * digits[1] + digits[2])
    return codes.pop() if len(codes) == 1 else None


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
def test_any_lines_are_a_reply_or_an_error_as_another_parser_says(
    lines: list[bytes],
) -> None:
    expected = code_of(lines)
    if expected is None:
        with pytest.raises(ProtocolError):
            parse(tuple(lines))
    else:
        reply = parse(tuple(lines))
        assert reply.code == expected
        assert len(reply.lines) == len(lines)
