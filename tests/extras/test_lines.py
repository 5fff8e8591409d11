from __future__ import annotations

import email
import email.policy
from email.charset import Charset
from email.header import Header, decode_header, make_header
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import (
    Extras,
    extract_extras,
    fields,
    render,
    resolve,
)

PREFIX = "X-LM-Metadata-"

keys = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"),
    min_size=1,
)
clean_values = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=300
).filter(lambda value: value == value.strip())
#: Text that is likely to meet the limits of encoded words, of lines and of folding.
values = st.text() | st.lists(
    st.sampled_from(
        ["a", " ", "=?", "?=", "=?utf-8?q?x?=", "é", "日本", "🎉", "x" * 300]
    ),
    max_size=40,
).map("".join)
tags = st.from_regex(r"[A-Za-z0-9_-]+( [A-Za-z0-9_-]+)*", fullmatch=True)


def refusal(headers: dict[str, object]) -> str:
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


# What `render` does


def test_nothing_is_rendered_of_nothing() -> None:
    assert render(Extras()) == b""


def test_each_extra_is_one_line() -> None:
    extras = Extras(route="news", tag="a b", metadata={"order_id": "7", "UserID": "é"})
    assert render(extras) == (
        b"X-Lettermint-Route: news\r\n"
        b"X-LM-Tag: a b\r\n"
        b"X-LM-Metadata-order_id: 7\r\n"
        b"X-LM-Metadata-UserID: =?utf-8?b?w6k=?=\r\n"
    )


def test_the_idempotency_key_is_not_among_the_lines() -> None:
    assert render(Extras(idempotency_key="k/1")) == b""


def test_a_tag_of_255_characters_is_one_line() -> None:
    assert render(Extras(tag="a" * 255)) == b"X-LM-Tag: " + b"a" * 255 + b"\r\n"


def test_two_keys_that_differ_in_case_are_two_lines() -> None:
    lines = render(Extras(metadata={"id": "1", "ID": "2"}))
    assert lines == b"X-LM-Metadata-id: 1\r\nX-LM-Metadata-ID: 2\r\n"


def test_a_line_of_998_octets_is_not_folded() -> None:
    value = "a " + "b" * 979
    line = f"X-LM-Metadata-k: {value}".encode()
    assert len(line) == 998
    assert render(Extras(metadata={"k": value})) == line + b"\r\n"


def test_a_longer_line_is_folded_before_a_space() -> None:
    value = "a " + "b" * 980
    lines = b"X-LM-Metadata-k: a\r\n " + b"b" * 980 + b"\r\n"
    assert render(Extras(metadata={"k": value})) == lines


def test_a_folded_line_may_have_998_octets_as_well() -> None:
    value = "a " + "b" * 997
    lines = b"X-LM-Metadata-k: a\r\n " + b"b" * 997 + b"\r\n"
    assert render(Extras(metadata={"k": value})) == lines


def test_a_run_of_spaces_is_not_split() -> None:
    value = "a" * 980 + "   b"
    lines = b"X-LM-Metadata-k: " + b"a" * 980 + b"\r\n   b\r\n"
    assert render(Extras(metadata={"k": value})) == lines


@pytest.mark.parametrize("value", ["a" * 982, "a " + "b" * 998, "a" + " " * 998 + "b"])
def test_a_line_that_cannot_be_folded_is_refused(value: str) -> None:
    with pytest.raises(LettermintInvalidMessage) as caught:
        render(Extras(metadata={"order_id": value}))
    assert "'X-LM-Metadata-order_id'" in str(caught.value)
    assert "over 998 octets" in str(caught.value)


def test_a_header_name_that_fills_the_line_is_refused() -> None:
    with pytest.raises(LettermintInvalidMessage, match="over 998 octets"):
        render(Extras(metadata={"k" * 990: "v"}))


def test_ascii_that_looks_like_an_encoded_word_is_encoded() -> None:
    lines = render(Extras(metadata={"k": "=?utf-8?q?x?="}))
    assert lines == b"X-LM-Metadata-k: =?utf-8?b?PT91dGYtOD9xP3g/PQ==?=\r\n"


@pytest.mark.parametrize("character", ["é", "🎉"])
def test_encoded_words_are_short_and_split_no_character(character: str) -> None:
    (_, *words) = render(Extras(metadata={"k": character * 120})).decode().split()
    assert len(words) > 3
    for word in words:
        assert len(word) <= 75
        assert set(str(make_header(decode_header(word)))) == {character}


@given(st.none() | tags, st.dictionaries(keys, values))
def test_what_is_rendered_reads_back_with_pythons_parsers(
    tag: str | None, metadata: dict[str, str]
) -> None:
    try:
        extras = resolve({"tag": tag, "metadata": metadata})
        source = render(extras)
    except LettermintInvalidMessage:
        return
    lines = source.split(b"\r\n")
    assert all(len(line) <= 998 for line in lines)
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert all(line.strip() for line in lines[:-1])
    message = source + b"\r\nbody\r\n"
    assert parse_modern(message) == parse_legacy(message) == expected(extras)


@given(st.dictionaries(keys, clean_values))
def test_clean_values_are_always_sent(metadata: dict[str, str]) -> None:
    source = render(resolve({"metadata": metadata})) + b"\r\n"
    assert parse_modern(source) == expected(Extras(metadata=metadata))


@given(st.none() | tags, st.dictionaries(keys, values), st.none() | tags)
def test_fields_are_read_back_by_split(
    tag: str | None, metadata: dict[str, str], key: str | None
) -> None:
    try:
        extras = resolve({"tag": tag, "metadata": metadata, "idempotency_key": key})
    except LettermintInvalidMessage:
        return
    headers = fields(extras)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    layer, others = extract_extras(headers)
    assert resolve(layer) == extras
    assert others == {}


def test_an_idempotency_key_that_looks_encoded_reads_back_as_given() -> None:
    extras = Extras(idempotency_key="=?utf-8?q?x?=")
    assert resolve(extract_extras(fields(extras))[0]) == extras


# What `split` does


def test_names_are_read_in_any_letter_case() -> None:
    headers = {
        "x-LETTERMINT-route": "r",
        "x-lm-TAG": "t",
        "X-lm-METADATA-UserID": "u",
        "IDEMPOTENCY-key": "k",
    }
    assert extract_extras(headers) == (
        {
            "route": "r",
            "tag": "t",
            "metadata": {"UserID": "u"},
            "idempotency_key": "k",
        },
        {},
    )


def test_other_headers_stay_in_order() -> None:
    headers = {"X-B": "1", "X-LM-Tag": "t", "X-A": "2", "X-LM-Metadata": "3"}
    layer, others = extract_extras(headers)
    assert layer == {"tag": "t"}
    assert list(others.items()) == [("X-B", "1"), ("X-A", "2"), ("X-LM-Metadata", "3")]


def test_the_given_headers_are_not_changed() -> None:
    headers = {"X-LM-Tag": "t", "X-A": 1}
    extract_extras(headers)
    assert headers == {"X-LM-Tag": "t", "X-A": 1}


@pytest.mark.parametrize("name", ["X-Tag", "x-tag"])
def test_x_tag_is_an_alias(name: str) -> None:
    assert extract_extras({name: "t"})[0] == {"tag": "t"}


def test_x_lm_tag_wins_over_x_tag_in_any_order() -> None:
    assert extract_extras({"X-LM-Tag": "lm", "X-Tag": "t"})[0] == {"tag": "lm"}
    assert extract_extras({"X-Tag": "t", "X-LM-Tag": "lm"})[0] == {"tag": "lm"}


def test_x_lm_metadata_wins_over_x_metadata_for_the_same_key_only() -> None:
    headers = {"X-LM-Metadata-k": "lm", "x-metadata-k": "s", "X-Metadata-K": "other"}
    assert extract_extras(headers)[0] == {"metadata": {"k": "lm", "K": "other"}}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("=?utf-8?b?w6k=?=", "é"),
        ("=?UTF-8?Q?=C3=A9t=C3=A9_?=", "été "),
        ("=?iso-8859-1?q?=E9?=", "é"),
        ("=?utf-8?b?w6k=?= =?utf-8?b?w6k=?=", "éé"),
        ("=?utf-8?b?8J+O?= =?utf-8?b?iQ==?=", "🎉"),
        ("a =?utf-8?b?w6k=?= b", "a é b"),
        ("a=?utf-8?b?w6k=?=b", "a=?utf-8?b?w6k=?=b"),
        ("=?no word?=", "=?no word?="),
    ],
)
def test_encoded_words_are_decoded_as_rfc_2047_says(value: str, text: str) -> None:
    assert extract_extras({"X-LM-Metadata-k": value})[0] == {"metadata": {"k": text}}


@pytest.mark.parametrize(
    "value", ["=?utf-8?b?w?=", "=?utf-8?q?=E9?=", "=?unknown?q?x?=", "=?rot13?q?x?="]
)
def test_encoded_words_that_cannot_be_decoded_are_refused(value: str) -> None:
    text = refusal({"X-LM-Metadata-k": value})
    assert "'X-LM-Metadata-k'" in text
    assert "RFC 2047" in text


@pytest.mark.parametrize(
    "value", [Header("é", "utf-8"), Header("é", Charset("iso-8859-1"))]
)
def test_a_header_object_is_its_text(value: Header) -> None:
    assert extract_extras({"X-LM-Metadata-k": value})[0] == {"metadata": {"k": "é"}}


def test_an_int_is_made_text() -> None:
    layer, others = extract_extras({"X-LM-Tag": 7, "X-Priority": 1})
    assert (layer, others) == ({"tag": "7"}, {"X-Priority": "1"})


def test_a_value_that_is_no_text_is_left_to_the_rules() -> None:
    layer, others = extract_extras(
        {"X-LM-Metadata-paid": True, "X-LM-Tag": 1.5, "X-A": None}
    )
    assert layer == {"metadata": {"paid": True}, "tag": 1.5}
    assert others == {"X-A": None}


@pytest.mark.parametrize("name", ["X-LM-Tag", "x-tag", "X-LM-Metadata-k"])
def test_none_hides_lower_layers_as_an_attribute_only(name: str) -> None:
    text = refusal({name: None})
    assert text.startswith(f"header {name!r}: None cannot be sent: ")
    assert "use the attribute" in text


@pytest.mark.parametrize("headers", [[("X-A", "b")], "X-A: b", 5])
def test_headers_that_are_no_mapping_are_refused(headers: Any) -> None:
    assert "extra_headers: " in refusal(headers)


def test_an_int_of_thousands_of_digits_is_refused() -> None:
    assert "'X-A'" in refusal({"X-A": 10**5000})


@pytest.mark.parametrize(
    "headers",
    [
        {"X-LM-Tag": "a", "x-lm-tag": "b"},
        {"X-Tag": "a", "x-tag": "b"},
        {"X-LM-Metadata-k": "a", "x-lm-metadata-k": "b"},
        {"Idempotency-Key": "a", "idempotency-key": "b"},
    ],
)
def test_the_same_header_with_two_values_is_refused(headers: dict[str, object]) -> None:
    text = refusal(headers)
    assert all(repr(part) in text for part in (*headers, *headers.values()))


def test_the_same_header_twice_with_one_value_is_accepted() -> None:
    assert extract_extras({"X-LM-Tag": "a", "x-lm-tag": "a"})[0] == {"tag": "a"}


@pytest.mark.parametrize("name", ["X-LM-Metadata-", "x-metadata-"])
def test_an_empty_metadata_key_is_refused(name: str) -> None:
    assert "a metadata key must follow" in refusal({name: "v"})


@pytest.mark.parametrize(
    "name",
    [
        *("X-LM-Metadata-a\r\nBcc", "X-LM-Metadata-a b", "X-LM-Metadata-a:b"),
        *("X-LM-Tag\x00", "X-A: b\r\nBcc", "X-A\n", "X A", "", "X-é", "X-\x7f", 5),
    ],
)
def test_a_header_name_that_is_none_is_refused(name: object) -> None:
    text = refusal({name: "v"})  # type: ignore[dict-item]
    assert f"header name: {name!r}" in text
    assert "printable ASCII characters without space and colon" in text


@pytest.mark.parametrize("name", ["X-LM-Tag", "X-LM-Metadata-k"])
@pytest.mark.parametrize(
    "character",
    ["\r\n ", "\n", "\r", "\x00", "\t", "\x0b", "\x1c", "\x85", "\u2028", "\udc80"],
)
def test_a_value_for_lettermint_with_a_control_character_is_refused(
    name: str, character: str
) -> None:
    text = refusal({name: f"a{character}b"})
    assert repr(name) in text
    assert "no line breaks" in text


@pytest.mark.parametrize("character", ["\r\n ", "\n", "\r", "\x00", "\udc80"])
def test_a_line_break_is_refused_in_every_header(character: str) -> None:
    assert "header 'X-A': " in refusal({"X-A": f"a{character}b"})


@pytest.mark.parametrize("character", ["\t", "\x0b", "\x1c", "\x85", "\u2028"])
def test_other_control_characters_are_data_in_other_headers(character: str) -> None:
    value = f"a{character}b"
    assert extract_extras({"X-A": value}) == ({}, {"X-A": value})


def test_controls_in_an_encoded_word_are_refused_in_the_end() -> None:
    layer, _ = extract_extras({"X-LM-Metadata-k": "=?utf-8?q?a=0D=0ABcc=3A_x?="})
    with pytest.raises(LettermintInvalidMessage, match="no line breaks"):
        resolve(layer)


@given(st.dictionaries(st.text(), st.text()))
def test_any_headers_are_parted_or_refused(headers: dict[str, object]) -> None:
    try:
        layer, others = extract_extras(headers)
        resolve(layer)
    except LettermintInvalidMessage:
        return
    assert others.items() <= headers.items()
