from __future__ import annotations

import gc
import re
import weakref
from email.textregistry import Address, HeaderRegistry
from email.utils import getaddresses
from typing import Any

import idna
import pytest
from django.utils.translation import gettext_lazy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.mime import Mailbox, parse, parse_list, parse_one


def encode(domain: str) -> str:
    return str(EmailBackend(api_token="lm_unused").idna_encode(domain))


def test_a_plain_address_is_taken_as_it_is() -> None:
    assert parse_one("to", "ann@example.com", encode) == Mailbox(
        "ann@example.com", "ann@example.com", "ann@example.com"
    )


def test_a_name_goes_into_the_header_only() -> None:
    mailbox = parse_one("to", "Ann Lee <ann@example.com>", encode)
    assert mailbox.address == mailbox.given == "ann@example.com"
    assert mailbox.text == "Ann Lee <ann@example.com>"


def test_a_domain_is_encoded_by_idna_2008() -> None:
    mailbox = parse_one("to", "Ann <ann@straße.de>", encode)
    assert mailbox.address == "ann@xn--strae-oqa.de"
    assert mailbox.text == "Ann <ann@xn--strae-oqa.de>"
    assert mailbox.given == "ann@straße.de"
    assert not mailbox.smtputf8


def test_characters_before_the_at_that_are_not_ascii_need_smtputf8() -> None:
    mailbox = parse_one("to", "nø@bücher.example", encode)
    assert mailbox.address == "nø@" + idna.encode("bücher.example").decode()
    assert mailbox.smtputf8


@pytest.mark.parametrize(
    "value",
    [Address("Ann", "ann", "example.com"), gettext_lazy("Ann <ann@example.com>")],
)
def test_address_objects_and_lazy_text_are_taken(value: object) -> None:
    assert parse_one("to", value, encode).text == "Ann <ann@example.com>"


def test_empty_addresses_are_left_out_as_django_does() -> None:
    mailboxes = parse("cc", ["", None, "ann@example.com"], encode)
    assert [each.address for each in mailboxes] == ["ann@example.com"]


@pytest.mark.parametrize(
    "value",
    [
        '"quoted local"@example.com',
        r'"a \" quote"@example.com',
        "o'hara@example.com",
        "percent%and!bang@example.com",
        "under_score@host_name.example.com",
        "a@example.com.au",
        '"Lee, Ann" <ann@example.com>',
        "Jörg Müller <joerg@example.com>",
        "=?utf-8?q?J=C3=B6rg?= <joerg@example.com>",
        "<ann@example.com>",
        "x" * 200 + "@example.com",
    ],
)
def test_unusual_but_correct_addresses_are_taken(value: str) -> None:
    [(_, address)] = getaddresses([value])
    mailbox = parse_one("to", value, encode)
    assert mailbox.text == value
    assert mailbox.address == parse_one("to", mailbox.address, encode).address
    assert mailbox.address.rpartition("@")[2] == address.rpartition("@")[2]


@pytest.mark.parametrize(
    "value",
    [
        "ann@example.com\r\nRCPT TO:<eve@example.com>",
        "ann@example.com\n",
        '"a\r\nb"@example.com',
        '"a\rb" <ann@example.com>',
        "ann\x00@example.com",
        "ann@example.com\x7f",
        "ann\x85@example.com",
        "ann\u2028@example.com",
        "ann\udc0a@example.com",
        "ann@example.com\t",
        "=?utf-8?q?a=0d=0aBcc:_eve=40example.com?= <ann@example.com>",
        "=?utf-8?b?YQ0KYg==?= <ann@example.com>",
    ],
)
def test_line_breaks_and_controls_are_refused_even_when_encoded(value: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^cc: .*control character"):
        parse_one("cc", value, encode)


def test_encoded_words_that_nobody_can_decode_are_left_alone() -> None:
    value = "=?no-such-charset?q?=ff?= <ann@example.com>"
    assert parse_one("to", value, encode).text == value


@pytest.mark.parametrize(
    "value",
    [
        "ann@example.com, eve@example.com",
        "ann@example.com; eve@example.com",
        "Lee, Ann <ann@example.com>",
        "ann@example.com <eve@example.com>",
        "friends: ann@example.com, eve@example.com;",
        "friends: ann@example.com;",
        "ann@example.com,",
        "ann@example.com (comment)",
        "<ann@example.com> SIZE=1",
        "ann@example.com> SIZE=1",
        "ann> SIZE=1@example.com",
        "ann",
        "@",
        "ann@",
        "@example.com",
        "ann lee@example.com",
        "ann@exam ple.com",
        "ann..lee@example.com",
        ".ann@example.com",
        "ann@example..com",
        "ann@example.com.",
        "=?utf-8?q?eve=40evil.example?=@example.com",
        "ann@" + "ü" * 70 + ".example",
        "Acme: News <news@acme.example>",
        "Bücher: Shop <shop@bücher.example>",
        ":ann@example.com",
        "Acme <news@acme.example",
        "Acme <news@äcme.example",
        "news@acme.example>",
        '"Acme <news@acme.example>',
        "Acme (News <news@acme.example>",
        r"Acme\ <news@acme.example>",
        '"jörg@example.com',
        "jörg@example.com.",
        ".jörg@example.com",
    ],
)
def test_what_is_not_exactly_one_address_is_refused(value: str) -> None:
    with pytest.raises(
        LettermintInvalidMessage, match=r"^bcc: .* one address as user@"
    ):
        parse_one("bcc", value, encode)


@pytest.mark.parametrize("name", ["Lee, Ann", "Acme: News"])
def test_a_name_with_a_comma_or_colon_gets_a_hint(name: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match="comma or colon needs quotes"):
        parse_one("to", f"{name} <ann@example.com>", encode)


@pytest.mark.parametrize(
    "value",
    [
        '"ann> SIZE=1"@example.com',
        '"<ann@example.com>"@example.com',
        "ann@[127.0.0.1]",
        "=?utf-8?q?eve?=ü@example.com",
        "x" * 250 + "@example.com",
        "é" * 125 + "@example.com",
    ],
)
def test_addresses_that_a_server_may_misread_are_refused(value: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^to: .* user@domain"):
        parse_one("to", value, encode)


@pytest.mark.parametrize("value", [("Ann", "ann@example.com"), b"ann@example.com", 5])
def test_what_is_not_text_is_refused(value: object) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^to: .* give it as text"):
        parse_one("to", value, encode)


def test_an_error_shows_a_bounded_part_of_the_address() -> None:
    with pytest.raises(LettermintInvalidMessage) as caught:
        parse_one("to", "x" * 100_000, encode)
    assert len(str(caught.value)) < 300


def test_a_header_holds_any_number_of_addresses() -> None:
    text = "Ann <ann@straße.de>, Jörg <jörg@example.com>"
    mailboxes = parse_list("header 'Reply-To'", text, encode)
    assert [each.address for each in mailboxes] == [
        "ann@xn--strae-oqa.de",
        "jörg@example.com",
    ]
    assert [each.smtputf8 for each in mailboxes] == [False, True]


def test_a_header_with_no_addresses_in_it_is_refused() -> None:
    with pytest.raises(LettermintInvalidMessage, match="header 'Reply-To': 'übel'"):
        parse_list("header 'Reply-To'", "übel", encode)


@pytest.mark.parametrize(
    "text", ["Gäste: ann@example.com;", "Gäste <ann@example.com", "Jörg: a@b.example"]
)
def test_a_header_whose_parsing_would_lose_a_name_is_refused(text: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^header 'To': .*needs quotes"):
        parse_list("header 'To'", text, encode)


def test_parsing_does_not_keep_backends_alive() -> None:
    # Each mail has a backend of its own, and the encoder is a method of it.
    backend = EmailBackend(api_token="lm_unused")
    parse_one("to", "Ann <ann@example.com>", backend.idna_encode)
    reference = weakref.ref(backend)
    del backend
    gc.collect()
    assert reference() is None


ADDRESSES = st.one_of(
    st.text(max_size=60),
    st.text(alphabet='ab@.,;:<>()[]"\\ =?\r\n\t\0ß\u2028', max_size=40),
    st.emails().map(str),
)


@given(ADDRESSES)
def test_any_text_is_refused_or_makes_one_safe_command(text: str) -> None:
    try:
        mailbox = parse_one("to", text, encode)
    except LettermintInvalidMessage:
        return
    assert not set(mailbox.address) & set("\r\n\0<>")
    local, _, domain = mailbox.address.rpartition("@")
    assert local
    assert domain.isascii()
    assert len(mailbox.address.encode()) <= 254
    quoted = local.startswith('"')
    assert quoted or not set(local) & set(' ,;:()[]"\\@')
    assert "\n" not in mailbox.text
    assert "\r" not in mailbox.text


def named_by(header: str) -> list[tuple[str, str]]:
    """Return the names and addresses that the standard library reads in a header."""
    parsed: Any = HeaderRegistry()("To", header)
    assert all(group.display_name is None for group in parsed.groups)
    return [(each.display_name, each.addr_spec) for each in parsed.addresses]


TOKENS = [
    *("Ann", "é", "a.b", "ann@example.com", "ann@straße.de", "jörg@example.com"),
    *("<", ">", " <ann@example.com>", ":", ";", ",", "@", " ", "[x]", "'"),
    *("(c)", "(", ")", '"', '"q, x"', "\\", "=?utf-8?q?x?="),
]


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(TOKENS), max_size=6).map("".join))
@example('"jörg@example.com')
@example("Acme: News <news@acme.example>")
def test_the_header_names_the_mailbox_of_the_command(text: str) -> None:
    try:
        mailbox = parse_one("to", text, encode)
    except LettermintInvalidMessage:
        return
    [(_, address)] = named_by(mailbox.text)
    assert address == mailbox.address


PRINTABLE = st.characters(exclude_categories=["C", "Zl", "Zp"])
QUOTED = st.text(PRINTABLE, max_size=30).map(
    lambda text: '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'
)
ATOM = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters='()<>[]:;@\\,."=?'),
    min_size=1,
    max_size=8,
)
SPECS = st.builds(
    "{}@{}".format,
    st.from_regex(r"[a-z0-9!#$%&'*+/^_`{|}~-]+(\.[a-z0-9_-]+)*", fullmatch=True).filter(
        lambda local: len(local) < 100
    ),
    st.sampled_from(["example.com", "host_name.example", "localhost"]),
)
PHRASES = st.lists(ATOM | QUOTED | st.just("Dr.") | st.just("(c)"), min_size=1).map(
    " ".join
)


@given(PHRASES, SPECS)
def test_every_legal_name_is_taken_as_it_is(name: str, spec: str) -> None:
    text = f"{name} <{spec}>"
    assert parse_one("to", text, encode) == Mailbox(spec, spec, text)


@given(QUOTED)
def test_a_quoted_name_is_not_lost_when_the_domain_is_encoded(name: str) -> None:
    mailbox = parse_one("to", f"{name} <ann@bücher.example>", encode)
    [(found, address)] = named_by(mailbox.text)
    assert found.strip() == re.sub(r"\\(.)", r"\1", name[1:-1]).strip()
    assert address == "ann@xn--bcher-kva.example"


@pytest.mark.parametrize("mark", ['"', "(", "<", " ", "a,", "(a)", '"a"', "a."])
def test_hostile_addresses_take_no_long_time(mark: str) -> None:
    with pytest.raises(LettermintInvalidMessage):
        parse_one("to", mark * 50_000 + "\\", encode)
