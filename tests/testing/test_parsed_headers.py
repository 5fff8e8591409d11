"""What the relay reads from a message's headers."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.testing.parsed_headers import ParsedHeaders, parse_headers
from django_lettermint.testing.session import Refused


def lines(*fields: str) -> bytes:
    return "".join(f"{field}\r\n" for field in fields).encode() + b"\r\nBody.\r\n"


def test_every_documented_header_is_read() -> None:
    content = lines(
        "Subject: Hi",
        "x-lettermint-ROUTE: broadcast",
        "x-LM-tag: Password Reset",
        "X-LM-Metadata-UserID: 12",
        "x-lm-METADATA-userid: 13",
        "X-LM-Metadata-order_id: A=1;b",
        "idempotency-key: k",
    )
    assert parse_headers(content) == ParsedHeaders(
        route="broadcast",
        tag="Password Reset",
        metadata={"UserID": "12", "userid": "13", "order_id": "A=1;b"},
        idempotency_key="k",
    )


@pytest.mark.parametrize("order", [1, -1])
def test_lettermints_own_names_win_over_the_others(order: int) -> None:
    fields = [
        "X-Tag: other",
        "X-LM-Tag: own",
        "X-Metadata-key: other",
        "X-LM-Metadata-key: own",
        "X-Metadata-KEY: alone",
    ]
    headers = parse_headers(lines(*fields[::order]))
    assert headers.tag == "own"
    assert headers.metadata == {"key": "own", "KEY": "alone"}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("", ""),
        ("one\r\n\ttwo", "one\ttwo"),
        ("=?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n =?utf-8?b?4oKs?=", "grüße€"),
        ("grüße", "grüße"),
        # Words that cannot be decoded stand as they are.
        ("=?no-such-charset?q?a?=", "=?no-such-charset?q?a?="),
        ("=?utf-8?b?a?=", "=?utf-8?b?a?="),
        ("=?ascii?q?=FF?=", "=?ascii?q?=FF?="),
        ("a =?x?= b", "a =?x?= b"),
    ],
)
def test_a_value_is_unfolded_and_decoded(value: str, read: str) -> None:
    assert parse_headers(lines(f"X-LM-Metadata-k: {value}")).metadata == {"k": read}


def test_only_the_header_section_counts() -> None:
    assert parse_headers(b"Subject: Hi\r\n\r\nX-Tag: body\r\n") == ParsedHeaders()
    assert parse_headers(b"\r\nX-Tag: body\r\n\r\n") == ParsedHeaders()
    assert parse_headers(b"Subject: Hi\r\n X-Tag: folded\r\n") == ParsedHeaders()
    assert parse_headers(b"X-Tag: only\r\n") == ParsedHeaders(tag="only")


@pytest.mark.parametrize(
    "fields",
    [
        ["X-LM-Tag: a.b"],
        ["X-LM-Tag: a  b"],
        ["X-LM-Tag: a\u00a0b"],
        ["X-LM-Tag:"],
        ["X-Tag: " + "a" * 256],
        ["X-LM-Tag: a", "x-lm-tag: b"],
        ["X-Lettermint-Route: two words"],
        ["X-Lettermint-Route: " + "a" * 256],
        ["X-LM-Metadata-: value"],
        ["X-LM-Metadata-k: a", "X-LM-Metadata-k: b"],
        ["Idempotency-Key:"],
        ["Idempotency-Key: " + "k" * 256],
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(fields: list[str]) -> None:
    with pytest.raises(Refused, match=r"5\.6\.0 ") as caught:
        parse_headers(lines(*fields))
    assert caught.value.reply.code == 550


def test_the_longest_values_have_255_characters() -> None:
    long = "a" * 255
    headers = parse_headers(
        lines(
            f"X-Tag: {long}", f"Idempotency-Key: {long}", f"X-Lettermint-Route: {long}"
        )
    )
    assert (headers.tag, headers.idempotency_key, headers.route) == (long, long, long)


@given(content=st.binary())
def test_any_octets_are_read_or_refused(content: bytes) -> None:
    with suppress(Refused):
        assert isinstance(parse_headers(content), ParsedHeaders)
