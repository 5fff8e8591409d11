"""An address is read in the one way it can be meant, or refused with the rule."""

from __future__ import annotations

import functools
import gc
import weakref
from dataclasses import replace
from email.headerregistry import Address, HeaderRegistry
from typing import Any

import pytest
from django.utils.translation import gettext_lazy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.mime import Mailbox, parse, parse_list, parse_one
from django_lettermint.mime.fields import addresses


@functools.cache
def encode(domain: str) -> str:
    return EmailBackend(api_token="lm_unused").idna_encode(domain)


def refusal(value: Any) -> str:
    with pytest.raises(
        LettermintInvalidMessage, match=r"^to: .* is refused: "
    ) as caught:
        parse_one("to", value, encode)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "name", "address"),
    [
        ("o'hara%x!y@host_1.example.com.au", "", "o'hara%x!y@host_1.example.com.au"),
        ('"quoted local"@b.example', "", '"quoted local"@b.example'),
        ('"plain"@b.example', "", "plain@b.example"),
        ("x" * 242 + "@b.example", "", "x" * 242 + "@b.example"),
        ("nø@bücher.example", "", "nø@xn--bcher-kva.example"),
        ("Ann <a@straße.de>", "Ann", "a@xn--strae-oqa.de"),
        (
            "a@\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.example",
            "",
            "a@xn--mgba3gch31f060k.example",
        ),
        (Address("Ann", "a", "b.example"), "Ann", "a@b.example"),
        (Address("", "a", "b.example"), "", "a@b.example"),
        (Address(" =?utf-8?q?a?=", "a", "b.example"), " =?utf-8?q?a?=", "a@b.example"),
        (gettext_lazy("Ann <a@b.example>"), "Ann", "a@b.example"),
        ("=?utf-8?q?J=C3=B6rg?= Lee <a@b.example>", "Jörg Lee", "a@b.example"),
        ('"=?utf-8?q?a?=" <a@b.example>', "=?utf-8?q?a?=", "a@b.example"),
        ("=?none?q?=ff?= <a@b.example>", "=?none?q?=ff?=", "a@b.example"),
        ("Service {24h} [w] <a@b.example>", "Service {24h} [w]", "a@b.example"),
        ("Acme: News; daily <a@b.example>", "Acme: News; daily", "a@b.example"),
        ("Ann (a, b@c) <a@b.example>", "Ann (a, b@c)", "a@b.example"),
        ("Acme (News <a@b.example>", "Acme (News", "a@b.example"),
        ('Ann "the boss" Lee <a@b.example>', "Ann the boss Lee", "a@b.example"),
        (r'"a \" quote" <a@b.example>', 'a " quote', "a@b.example"),
        ('"Lee, Ann" at "A, B" <a@b.example>', "Lee, Ann at A, B", "a@b.example"),
        ('"Tab\tbed \x0b" <a@b.example>', "Tab\tbed \x0b", "a@b.example"),
        ("a@b.example (West wing)", "West wing", "a@b.example"),
        (r"a@b.example (a \) b)", "a ) b", "a@b.example"),
        ("a@b.example (=?utf-8?q?=C3=A9?=)", "é", "a@b.example"),
        ("Ann <a@b.example> (west)", "Ann (west)", "a@b.example"),
        (" < a@b.example > ", "", "a@b.example"),
    ],
)
def test_an_address_has_a_name_and_a_form_for_commands(
    value: Any, name: str, address: str
) -> None:
    mailbox = parse_one("to", value, encode)
    assert (mailbox.name, mailbox.address) == (name, address)
    assert parse_one("to", mailbox.text, encode) == replace(mailbox, given=address)


def test_what_the_caller_wrote_is_kept() -> None:
    mailbox = parse_one("to", "Ann <a@straße.de>", encode)
    assert mailbox.given == "a@straße.de"
    assert mailbox.text == "Ann <a@xn--strae-oqa.de>"
    assert parse_one("to", "<a@b.example>", encode).text == "a@b.example"


def test_empty_addresses_are_left_out_as_django_does() -> None:
    found = parse("cc", ["", None, "a@b.example"], encode)
    assert found == [Mailbox(given="a@b.example", address="a@b.example")]


LINE_BREAK, SEVERAL, QUOTES = "line break", "one address an entry", "in double quotes"
FORM = "write one address as user@domain"


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("a@b.example\r\nRCPT TO:<eve@b.example>", LINE_BREAK),
        ("Ann\x00 <a@b.example>", LINE_BREAK),
        ("a\udc0a@b.example", LINE_BREAK),
        ("=?utf-8?q?a=0d=0aBcc:_eve=40b?= <a@b.example>", LINE_BREAK),
        ("a@b.example (=?utf-8?b?YQ0KYg==?=)", LINE_BREAK),
        ("a\u200d@b.example", "U+200D (ZERO WIDTH JOINER)"),
        ("a\tb@b.example", "U+0009 (a control character)"),
        ("a\u2028@b.example", "U+2028 (LINE SEPARATOR)"),
        ("a@b\u200b.example", "U+200B (ZERO WIDTH SPACE)"),
        ('"a\u202eb"@b.example', "U+202E (RIGHT-TO-LEFT OVERRIDE)"),
        ("a@mail\u200d.example", "Joiner U+200D not allowed"),
        ("a@b.example, c@d.example", SEVERAL),
        ("a@b.example; c@d.example", SEVERAL),
        ("friends: a@b.example;", SEVERAL),
        ("friends:;", SEVERAL),
        ("Lee, Ann <a@b.example>", QUOTES),
        ("a@b.example <a@b.example>", QUOTES),
        ('"Acme <a@b.example>', QUOTES),
        ("a@b.example> <a@b.example>", QUOTES),
        ("first..last@b.example", 'need quotes, "first..last"@b.example'),
        (".first@b.example", 'need quotes, ".first"@b.example'),
        ("you@☕.example", "Codepoint U+2615"),
        ("<a@b.example> SIZE=1", FORM),
        ('"a> SIZE=1"@b.example', FORM),
        ("a@[127.0.0.1]", FORM),
        ("a@", FORM),
        ("@b.example", FORM),
        ("a@b c.example", FORM),
        ("a@b..example", FORM),
        ("a@b.example.", FORM),
        ("=?utf-8?q?eve=40evil.example?=@b.example", "a user with =? is none"),
        (":a@b.example", FORM),
        ("ann(c)@b.example", FORM),
        ('""@b.example', FORM),
        ("x" * 245 + "@b.example", "at most 254 octets"),
        ("é" * 125 + "@b.example", "at most 254 octets"),
        (("Ann", "a@b.example"), "give it as text"),
        (5, "give it as text"),
    ],
)
def test_what_is_not_exactly_one_address_is_refused(value: object, rule: str) -> None:
    assert rule in refusal(value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ann <a@ü.example>, ø@b.example", ["a@xn--tda.example", "ø@b.example"]),
        ("a@b.example, ,c@d.example,", ["a@b.example", "c@d.example"]),
        (
            '"Lee, Ann" <a@b.example>, c@d.example (e, f)',
            ["a@b.example", "c@d.example"],
        ),
        ("Team: Ann <a@b.example>, c@d.example; ", ["a@b.example", "c@d.example"]),
        ("undisclosed-recipients:;", []),
        ("", []),
    ],
)
def test_a_header_holds_addresses_or_a_group(text: str, found: list[str]) -> None:
    mailboxes = parse_list("header 'To'", text, encode)
    assert [each.address for each in mailboxes] == found


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("übel", FORM),
        ("a@b.example, Lee", "double quotes if it has commas"),
        ("Retail, Import <a@b.example>", "double quotes if it has commas"),
        ("Gäste: a@b.example;", "groups are not encoded"),
    ],
)
def test_a_header_that_holds_something_else_is_refused(text: str, rule: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^header 'To': ") as caught:
        parse_list("header 'To'", text, encode)
    assert rule in str(caught.value)


def test_parsing_does_not_keep_backends_alive() -> None:
    # Each mail has a backend of its own, and the encoder is a method of it.
    backend = EmailBackend(api_token="lm_unused")
    parse_one("to", "Ann <ann@example.com>", backend.idna_encode)
    reference = weakref.ref(backend)
    del backend
    gc.collect()
    assert reference() is None


TOKENS = [
    *("Ann", "é", "a.b", "ann@example.com", "ann@straße.de", "jörg@example.com"),
    *("<", ">", " <ann@example.com>", ":", ";", ",", "@", " ", "[x]", "'", "\0", "\r"),
    *("(c)", "(", ")", '"', '"q, x"', "\\", "=?utf-8?q?x?=", "\u2028"),
]


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from(TOKENS), max_size=6).map("".join)
    | st.text(max_size=60)
    | st.emails()
)
@example('"jörg@example.com')
@example("Acme: News <news@acme.example>")
@example("=?utf-8?q?x?= <ann@example.com>")
def test_any_text_is_refused_or_is_one_mailbox_in_command_and_header(text: str) -> None:
    try:
        mailbox = parse_one("to", text, encode)
    except LettermintInvalidMessage:
        return
    local, _, domain = mailbox.address.rpartition("@")
    assert not set(mailbox.address + mailbox.text) & set("\r\n\0")
    assert not set(mailbox.address) & set("<>")
    assert domain.isascii()
    assert len(mailbox.address.encode()) <= 254
    assert local.startswith('"') or not set(local) & set(' ,;:()[]"\\@')
    assert parse_one("to", mailbox.text, encode) == replace(
        mailbox, given=mailbox.address
    )
    line = addresses("To", [mailbox]).decode().removeprefix("To: ")
    header: Any = HeaderRegistry()("To", line.replace("\r\n", ""))
    assert [each.addr_spec for each in header.addresses] == [mailbox.address]


@pytest.mark.parametrize(
    "mark",
    ['"', "(", "<", " ", "a,", "(a)", '"a"', "a.", r"\"", "(\\", "(a(b", "=?", "@,"],
)
def test_hostile_addresses_take_no_long_time_and_no_long_error(mark: str) -> None:
    assert len(refusal(mark * 10_000 + "\\")) < 400
    with pytest.raises(LettermintInvalidMessage):
        parse_list("header 'To'", mark * 2_000 + "\\", encode)
