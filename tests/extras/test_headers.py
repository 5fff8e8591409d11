"""Lettermint's headers are written exactly, and read back as they were meant."""

from __future__ import annotations

import email
import email.policy
from email.header import Header, decode_header, make_header
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import (
    Extras,
    Layer,
    extract_extras,
    fields,
    render,
    resolve,
)

PREFIX = "X-LM-Metadata-"
#: Text that is likely to meet the limits of encoded words, of lines and of folding.
PIECES = ["a", " ", "=?", "?=", "=?utf-8?q?x?=", "é", "日本", "🎉", "x" * 300]
values = st.text() | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
keys = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"),
    min_size=1,
)
tags = st.from_regex(r"[A-Za-z0-9_-]+( [A-Za-z0-9_-]+)*", fullmatch=True)
#: The room for a value under the key k.
ROOM = 998 - len("X-LM-Metadata-k: ")


def refusal(headers: Any) -> str:
    with pytest.raises(LettermintInvalidMessage) as caught:
        extract_extras(headers)
    return str(caught.value)


def parse_modern(source: bytes) -> dict[str, str]:
    message = email.message_from_bytes(source, policy=email.policy.default)
    return {name: str(value) for name, value in message.items()}


def parse_legacy(source: bytes) -> dict[str, str]:
    message = email.message_from_bytes(source, policy=email.policy.compat32)
    return {
        name: str(make_header(decode_header(value.replace("\r\n", ""))))
        for name, value in message.items()
    }


def expected(extras: Extras) -> dict[str, str]:
    found = {PREFIX + key: value for key, value in extras.metadata.items()}
    if extras.tag is not None:
        found["X-LM-Tag"] = extras.tag
    return found


# -- Writing -------------------------------------------------------------------------------


def test_extras_are_lines_without_the_idempotency_key() -> None:
    metadata = {"k": "7", "K": "é"}
    extras = Extras(route="a", tag="t" * 255, metadata=metadata, idempotency_key="k/1")
    assert render(extras).decode().splitlines() == [
        "X-Lettermint-Route: a",
        "X-LM-Tag: " + "t" * 255,
        "X-LM-Metadata-k: 7",
        "X-LM-Metadata-K: =?utf-8?b?w6k=?=",
    ]


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ("=?utf-8?q?x?=", "=?utf-8?b?PT91dGYtOD9xP3g/PQ==?="),
        ("a " + "b" * (ROOM - 2), "a " + "b" * (ROOM - 2)),
        ("a " + "b" * (ROOM - 1), "a\r\n " + "b" * (ROOM - 1)),
        ("a" * 980 + "   b", "a" * 980 + "\r\n   b"),
        (f"a b {'c' * 500}  {'d' * 490}", f"a b\r\n {'c' * 500}  {'d' * 490}"),
    ],
)
def test_a_line_is_folded_only_beyond_998_octets(value: str, lines: str) -> None:
    found = render(Extras(metadata={"k": value})).decode()
    assert found == f"X-LM-Metadata-k: {lines}\r\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k", "a" * (ROOM + 1)),
        ("k", "a " + "b" * 998),
        ("k", "a" + " " * 998 + "b"),
        ("k" * 990, "v"),
    ],
)
def test_a_line_that_cannot_be_folded_is_refused(key: str, value: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match="over 998 octets") as caught:
        render(Extras(metadata={key: value}))
    assert str(caught.value).startswith("header 'X-LM-Metadata-k")


@given(
    st.none() | tags,
    st.dictionaries(keys, values),
    st.none() | tags | st.just("=?utf-8?q?x?="),
)
def test_what_is_written_reads_back_with_pythons_parsers_and_ours(
    tag: str | None, metadata: dict[str, str], key: str | None
) -> None:
    try:
        extras = resolve({"tag": tag, "metadata": metadata, "idempotency_key": key})
        source = render(extras)
    except LettermintInvalidMessage:
        return
    *lines, last = source.split(b"\r\n")
    assert all(len(line) <= 998 and line.strip() for line in lines)
    assert not any(b"\r" in line or b"\n" in line for line in [*lines, last])
    message = source + b"\r\nbody\r\n"
    assert parse_modern(message) == parse_legacy(message) == expected(extras)
    headers = fields(extras)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    layer, others = extract_extras(headers)
    assert (resolve(layer), others) == (extras, {})


# -- Reading -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "layer"),
    [
        ({"x-LETTERMINT-route": "r"}, {"route": "r"}),
        ({"x-lm-TAG": "t"}, {"tag": "t"}),
        ({"X-lm-METADATA-UserID": "u"}, {"metadata": {"UserID": "u"}}),
        ({"IDEMPOTENCY-key": "k"}, {"idempotency_key": "k"}),
        ({"x-tag": "t"}, {"tag": "t"}),
        ({"X-LM-Tag": "lm", "X-Tag": "t"}, {"tag": "lm"}),
        ({"X-Tag": "t", "X-LM-Tag": "lm"}, {"tag": "lm"}),
        ({"X-LM-Tag": "a", "x-lm-tag": "a"}, {"tag": "a"}),
        (
            {"X-LM-Metadata-k": "lm", "x-metadata-k": "s", "X-Metadata-K": "other"},
            {"metadata": {"k": "lm", "K": "other"}},
        ),
        ({"X-LM-Tag": 7}, {"tag": "7"}),
        # Other types are left to the rules.
        ({"X-LM-Metadata-paid": True}, {"metadata": {"paid": True}}),
        ({"X-LM-Tag": 1.5}, {"tag": 1.5}),
    ],
)
def test_headers_are_read_by_official_names_and_aliases(
    headers: dict[str, object], layer: Layer
) -> None:
    before = dict(headers)
    assert extract_extras(headers) == (layer, {})
    assert headers == before


def test_other_headers_stay_in_order() -> None:
    headers = {"X-B": 1, "X-LM-Tag": "t", "X-A": None, "X-LM-Metadata": "a\tb\x85"}
    layer, others = extract_extras(headers)
    assert layer == {"tag": "t"}
    assert list(others.items()) == [
        ("X-B", "1"),
        ("X-A", None),
        ("X-LM-Metadata", "a\tb\x85"),
    ]


def test_a_value_need_not_equal_itself() -> None:
    layer, _ = extract_extras({"X-LM-Metadata-k": float("nan")})
    assert resolve(layer).metadata == {"k": "nan"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("=?utf-8?b?w6k=?=", "é"),
        ("=?iso-8859-1?q?=E9?=", "é"),
        ("=?utf-8?b?w6k=?= =?utf-8?b?w6k=?=", "éé"),
        ("=?utf-8?b?8J+O?= =?utf-8?b?iQ==?=", "🎉"),
        ("a =?utf-8?b?w6k=?= b", "a é b"),
        ("a=?utf-8?b?w6k=?=b", "a=?utf-8?b?w6k=?=b"),
        ("=?no word?=", "=?no word?="),
        (Header("é", "utf-8"), "é"),
    ],
)
def test_encoded_words_are_decoded_as_rfc_2047_says(value: object, text: str) -> None:
    assert extract_extras({"X-LM-Metadata-k": value})[0] == {"metadata": {"k": text}}


@pytest.mark.parametrize(
    ("headers", "texts"),
    [
        *(
            ({"X-LM-Metadata-k": value}, ["'X-LM-Metadata-k'", "RFC 2047"])
            for value in ("=?utf-8?b?w?=", "=?utf-8?q?=E9?=", "=?none?q?x?=")
        ),
        *(
            ({name: None}, [f"header {name!r}: None cannot", "use the attribute"])
            for name in ("X-LM-Tag", "x-tag", "X-LM-Metadata-k")
        ),
        *((headers, ["extra_headers: "]) for headers in ([("X-A", "b")], "X-A: b", 5)),
        ({"X-A": 10**5000}, ["'X-A'"]),
        (
            {"X-LM-Tag": "a", "x-lm-tag": "b"},
            ["'X-LM-Tag'", "'x-lm-tag'", "'a'", "'b'"],
        ),
        ({PREFIX + "k": "a", PREFIX.lower() + "k": "b"}, ["is already 'a'; give one"]),
        ({"X-LM-Metadata-": "v"}, ["a metadata key must follow"]),
        *(
            ({name: "v"}, [f"header name: {name!r}", "without space and colon"])
            for name in [
                *("X-LM-Metadata-a\r\nBcc", "X-LM-Metadata-a b", "X-LM-Metadata-a:b"),
                *("X-LM-Tag\x00", "X-A: b", "X-A\n", "X A", "", "X-é", "X-\x7f", 5),
            ]
        ),
        *(
            ({name: f"a{control}b"}, [f"header {name!r}: ", "no line breaks"])
            for name in ("X-LM-Tag", "X-LM-Metadata-k")
            for control in ["\r\n ", *"\n\r\x00\t\x0b\x1c\x85\u2028\udc80"]
        ),
        *(
            ({"X-A": f"a{control}b"}, ["header 'X-A': ", "no line breaks"])
            for control in ("\r\n ", "\n", "\r", "\x00", "\udc80")
        ),
    ],
)
def test_headers_that_break_a_rule_are_refused(headers: Any, texts: list[str]) -> None:
    found = refusal(headers)
    assert all(text in found for text in texts)


def test_controls_in_an_encoded_word_are_refused_in_the_end() -> None:
    layer, _ = extract_extras({"X-LM-Metadata-k": "=?utf-8?q?a=0D=0ABcc=3A_x?="})
    with pytest.raises(LettermintInvalidMessage, match="no line breaks"):
        resolve(layer)
