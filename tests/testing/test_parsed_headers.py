"""What the relay reads from a message's headers."""

from __future__ import annotations

import email.header
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.testing import ReceivedMessage, Relay
from django_lettermint.testing.parsed_headers import (
    ParsedHeaders,
    parse_headers,
)
from django_lettermint.testing.session import Refused
from tests.testing.relay_client import client

printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)


def lines(*fields: str) -> bytes:
    return "".join(f"{field}\r\n" for field in fields).encode() + b"\r\nBody.\r\n"


def test_every_documented_header_is_read() -> None:
    content = lines(
        "Subject: Hi",
        "X-Lettermint-Route: broadcast",
        "X-LM-Tag: Password Reset",
        "X-LM-Metadata-UserID: 12",
        "X-LM-Metadata-userid: 13",
        "X-LM-Metadata-order_id: A=1;b",
        "Idempotency-Key: 0b6a",
    )
    assert parse_headers(content) == ParsedHeaders(
        route="broadcast",
        tag="Password Reset",
        metadata={"UserID": "12", "userid": "13", "order_id": "A=1;b"},
        idempotency_key="0b6a",
    )


def test_the_case_of_names_does_not_matter_and_the_case_of_keys_does() -> None:
    content = lines("x-lettermint-ROUTE: a", "x-TAG: b", "x-Lm-MeTaDaTa-Key: c")
    assert parse_headers(content) == ParsedHeaders(
        route="a", tag="b", metadata={"Key": "c"}
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


def test_values_are_unfolded_and_decoded() -> None:
    content = lines(
        "X-LM-Metadata-folded: one",
        "\ttwo",
        "X-LM-Metadata-word: =?utf-8?q?gr=C3=BC=C3=9Fe?=",
        " =?utf-8?b?4oKs?=",
        "X-LM-Metadata-raw: grüße",
        "X-LM-Metadata-empty:",
    )
    assert parse_headers(content).metadata == {
        "folded": "one\ttwo",
        "word": "grüße€",
        "raw": "grüße",
        "empty": "",
    }


@pytest.mark.parametrize(
    "value",
    ["=?no-such-charset?q?a?=", "=?utf-8?b?a?=", "=?ascii?q?=FF?=", "=?", "a =?x?= b"],
)
def test_a_word_that_cannot_be_decoded_stands_as_it_is(value: str) -> None:
    assert parse_headers(lines(f"X-LM-Metadata-k: {value}")).metadata == {"k": value}


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
def test_what_breaks_a_rule_is_refused(fields: list[str]) -> None:
    with pytest.raises(Refused, match=r"5\.6\.0 "):
        parse_headers(lines(*fields))


def test_the_limits_themselves_are_allowed() -> None:
    tag, key = "a" * 255, "k" * 255
    headers = parse_headers(lines(f"X-Tag: {tag}", f"Idempotency-Key: {key}"))
    assert (headers.tag, headers.idempotency_key) == (tag, key)


def test_the_reply_to_the_content_names_the_rule() -> None:
    with Relay() as relay:
        with client(relay) as connection:
            connection.mail("a@example.com")
            connection.rcpt("b@example.com")
            code, text = connection.data(lines("X-Tag: a.b"))
        assert (code, text) == (550, b"5.6.0 The tag is invalid")
        assert relay.messages == []


FIELDS = st.sampled_from(
    [
        *("Cc", "From", "Sender", "Reply-To", "Message-ID", "Date", "MIME-Version"),
        *("Content-Type", "Content-Disposition", "Content-Transfer-Encoding"),
        *("Subject", "X-Any"),
    ]
)
PIECES = [
    *"\"\\<>@[]():;,.=?*'%0a \té\x00\x7f",
    *("\r\n ", "=?utf-8?q?", "?=", "*0*=", "multipart/mixed; boundary=", "attachment"),
]
VALUES = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


def received(content: bytes) -> ReceivedMessage:
    return ReceivedMessage(
        id="1",
        mail_from="a@example.com",
        recipients=("b@example.com",),
        content=content,
        route=None,
        tag=None,
        metadata={},
        idempotency_key=None,
        smtputf8=False,
        body_8bit=False,
        chunked=False,
        connection=1,
        security="tls",
        tls="",
        token="lm_test_token",
        received_at=0.0,
    )


def test_a_field_that_cannot_be_parsed_is_its_text() -> None:
    message = received(
        b'Cc: "\r\nMessage-ID: <[7]@x>\r\nTo: b@example.com\r\n\r\nHi\r\n'
    )
    for found in (message.headers, message.mime):
        # Python 3.14 and later read it as an empty address.
        assert found["Cc"] in ('"', "<>")
        assert found["Message-ID"] == "<[7]@x>"
        assert found["To"].addresses[0].username == "b"


@given(st.lists(st.tuples(FIELDS, VALUES), max_size=5), st.binary(max_size=50))
def test_the_fields_of_any_message_can_be_looked_at(
    fields: list[tuple[str, str]], body: bytes
) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    message = received(head.encode() + b"\r\n" + body)
    for found in (message.headers, message.mime):
        assert len(found.items()) == len(found.keys())
        for part in found.walk():
            part.get_content_type()
            part.get_filename()
            part.is_attachment()


def test_parts_nested_too_deep_for_python_are_the_body_of_the_message() -> None:
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (each, each)
        for each in range(2000)
    )
    mime = received(b"Subject: deep\r\n" + deep).mime
    assert mime["Subject"] == "deep"
    assert not mime.is_multipart()


@given(value=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])))
def test_what_python_encodes_is_decoded(value: str) -> None:
    encoded = email.header.Header(value, "utf-8", maxlinelen=75).encode(linesep="\r\n")
    assert parse_headers(lines(f"X-LM-Metadata-k: {encoded}")).metadata == {"k": value}


@given(content=st.binary())
def test_any_octets_are_read_or_refused(content: bytes) -> None:
    with suppress(Refused):
        assert isinstance(parse_headers(content), ParsedHeaders)


@given(st.dictionaries(printable.filter(lambda key: ":" not in key), printable))
def test_any_metadata_comes_through(metadata: dict[str, str]) -> None:
    fields = [f"X-LM-Metadata-{key}: {value}" for key, value in metadata.items()]
    plain = {key: value for key, value in metadata.items() if "=?" not in value}
    assert parse_headers(lines(*fields)).metadata.items() >= plain.items()
