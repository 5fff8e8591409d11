from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from email.headerregistry import Address, HeaderRegistry
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
from django_lettermint.mime.fields import addresses


def encode(domain: str) -> str:
    return str(EmailBackend(api_token="lm_unused").idna_encode(domain))


def test_a_plain_address_is_taken_as_it_is() -> None:
    assert parse_one("to", "ann@example.com", encode) == Mailbox(
        given="ann@example.com", address="ann@example.com"
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


def test_characters_before_the_at_that_are_not_ascii_need_smtputf8() -> None:
    mailbox = parse_one("to", "nø@bücher.example", encode)
    assert mailbox.address == "nø@" + idna.encode("bücher.example").decode()


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
        "x" * 200 + "@example.com",
    ],
)
def test_unusual_but_correct_addresses_are_taken(value: str) -> None:
    [(_, address)] = getaddresses([value])
    mailbox = parse_one("to", value, encode)
    assert parse_one("to", mailbox.text, encode) == mailbox
    assert mailbox.address == parse_one("to", mailbox.address, encode).address
    assert mailbox.address.rpartition("@")[2] == address.rpartition("@")[2]


def test_encoded_words_in_a_name_are_decoded() -> None:
    value = "=?utf-8?q?J=C3=B6rg?= Lee <joerg@example.com>"
    assert parse_one("to", value, encode).name == "Jörg Lee"


def test_what_looks_like_an_encoded_word_in_quotes_is_that_text() -> None:
    mailbox = parse_one("to", '"=?utf-8?q?a?=" <ann@example.com>', encode)
    assert mailbox.name == "=?utf-8?q?a?="
    assert parse_one("to", mailbox.text, encode) == mailbox


def test_encoded_words_that_nobody_can_decode_are_left_alone() -> None:
    value = "=?no-such-charset?q?=ff?= <ann@example.com>"
    assert parse_one("to", value, encode).name == "=?no-such-charset?q?=ff?="


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("Service {24h} [west] <ann@example.com>", "Service {24h} [west]"),
        ("Dr. Ann O. Lee <ann@example.com>", "Dr. Ann O. Lee"),
        ("Acme: News <ann@example.com>", "Acme: News"),
        ("News; daily <ann@example.com>", "News; daily"),
        (r"C:\News <ann@example.com>", r"C:\News"),
        ("(W) West <ann@example.com>", "(W) West"),
        ("Ann (west wing) <ann@example.com>", "Ann (west wing)"),
        ("Ann (a, b@c) <ann@example.com>", "Ann (a, b@c)"),
        ("Acme (News <ann@example.com>", "Acme (News"),
        ('Ann "the boss" Lee <ann@example.com>', "Ann the boss Lee"),
        (r'"a \" quote" <ann@example.com>', 'a " quote'),
        ('"Lee, Ann" <ann@example.com>', "Lee, Ann"),
        ("Zo\u200dë <ann@example.com>", "Zo\u200dë"),
        ('"Tab\tbed \x0b" <ann@example.com>', "Tab\tbed \x0b"),
        ("ann@example.com (West wing)", "West wing"),
        (r"ann@example.com (a \) b)", "a ) b"),
        ("ann@example.com (=?utf-8?q?=C3=A9?=)", "é"),
        ("ann@example.com (a (b) c)", "a (b) c"),
        ("Ann <ann@example.com> (west)", "Ann (west)"),
        ("<ann@example.com>", ""),
        (" < ann@example.com > ", ""),
    ],
)
def test_a_name_that_can_only_be_meant_in_one_way_is_taken(
    value: str, name: str
) -> None:
    mailbox = parse_one("to", value, encode)
    assert (mailbox.name, mailbox.address) == (name, "ann@example.com")
    assert parse_one("to", mailbox.text, encode) == mailbox


@pytest.mark.parametrize(
    "value",
    [
        "ann@example.com\r\nRCPT TO:<eve@example.com>",
        "ann@example.com\n",
        '"a\r\nb"@example.com',
        '"a\rb" <ann@example.com>',
        "ann\x00@example.com",
        "Ann\x00 <ann@example.com>",
        "ann\udc0a@example.com",
        "=?utf-8?q?a=0d=0aBcc:_eve=40example.com?= <ann@example.com>",
        "=?utf-8?b?YQ0KYg==?= <ann@example.com>",
        "ann@example.com (=?utf-8?b?YQ0KYg==?=)",
    ],
)
def test_line_breaks_are_refused_even_when_encoded(value: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^cc: .* line break"):
        parse_one("cc", value, encode)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("you\u200d@example.com", "U+200D (ZERO WIDTH JOINER)"),
        ("\ufeffyou@example.com", "U+FEFF (ZERO WIDTH NO-BREAK SPACE)"),
        ("You <you\u00ad@example.com>", "U+00AD (SOFT HYPHEN)"),
        ("y\u00a0ou@example.com", "U+00A0 (NO-BREAK SPACE)"),
        ("y\u3000ou@example.com", "U+3000 (IDEOGRAPHIC SPACE)"),
        ("you\x7f@example.com", "U+007F (a control character)"),
        ("you\x85@example.com", "U+0085 (a control character)"),
        ("y\tou@example.com", "U+0009 (a control character)"),
        ("you\u2028@example.com", "U+2028 (LINE SEPARATOR)"),
        ("you@ex\u200bample.com", "U+200B (ZERO WIDTH SPACE)"),
        ("you@example\u00ad.com", "U+00AD (SOFT HYPHEN)"),
        ('"y\u202eou"@example.com', "U+202E (RIGHT-TO-LEFT OVERRIDE)"),
        ("you@mail\u200d.example", "U+200D"),
    ],
)
def test_a_character_that_nobody_sees_is_named(value: str, named: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^to: ") as caught:
        parse_one("to", value, encode)
    assert named in str(caught.value)


def test_a_domain_may_have_joiners_where_idna_allows_them() -> None:
    # "Letter" in Persian, with a zero width non-joiner.
    assert parse_one(
        "to", "a@\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.example", encode
    ).address.startswith("a@xn--")


@pytest.mark.parametrize(
    "value",
    [
        "ann@example.com, eve@example.com",
        "ann@example.com; eve@example.com",
        "ann@example.com;eve@example.com;",
        "Ann <ann@example.com>, Eve <eve@example.com>",
        "friends: ann@example.com, eve@example.com;",
        "friends: ann@example.com;",
        "friends:;",
    ],
)
def test_several_addresses_in_one_entry_are_refused(value: str) -> None:
    with pytest.raises(
        LettermintInvalidMessage, match=r"^bcc: .* one address an entry"
    ):
        parse_one("bcc", value, encode)


@pytest.mark.parametrize(
    "value",
    [
        "Lee, Ann <ann@example.com>",
        "ann@example.com <ann@example.com>",
        "@ann <ann@example.com>",
        '"Acme <news@acme.example>',
        "<ann> <ann@example.com>",
        "ann@example.com> <ann@example.com>",
    ],
)
def test_a_name_that_needs_quotes_gets_the_advice(value: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match="put the name in double quotes"):
        parse_one("to", value, encode)


@pytest.mark.parametrize("local", ["first..last", ".first", "last.", "a...b"])
def test_dots_that_need_quotes_are_shown_in_quotes(local: str) -> None:
    with pytest.raises(LettermintInvalidMessage) as caught:
        parse_one("to", f"{local}@mail.example", encode)
    shown = f'"{local}"@mail.example'
    assert str(caught.value).endswith(shown)
    assert parse_one("to", shown, encode).address == shown


@pytest.mark.parametrize("domain", ["☕.example", "a\u2603b.example", "xn--a.☕"])
def test_a_domain_that_idna_does_not_know_is_refused_with_the_reason(
    domain: str,
) -> None:
    with pytest.raises(LettermintInvalidMessage, match="Codepoint U") as caught:
        parse_one("to", f"you@{domain}", encode)
    assert "`idna_encoder`" in str(caught.value)


def test_an_encoder_that_does_not_encode_is_refused() -> None:
    with pytest.raises(LettermintInvalidMessage, match="write one address"):
        parse_one("to", "you@ü.example", lambda domain: domain)


@pytest.mark.parametrize(
    "value",
    [
        "ann@example.com,",
        "<ann@example.com> SIZE=1",
        "ann@example.com> SIZE=1",
        "ann> SIZE=1@example.com",
        "ann",
        "@",
        "ann@",
        "@example.com",
        "ann lee@example.com",
        "ann@exam ple.com",
        "ann@example..com",
        "ann@example.com.",
        "=?utf-8?q?eve=40evil.example?=@example.com",
        "ann@" + "ü" * 70 + ".example",
        ":ann@example.com",
        "Acme <news@acme.example",
        "Acme <news@äcme.example",
        "news@acme.example>",
        '"jörg@example.com',
        "jörg@example.com.",
        "ann(c)@example.com",
        "ann@example.com (c",
        '""@example.com',
    ],
)
def test_what_is_not_exactly_one_address_is_refused(value: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^bcc: .* is refused: "):
        parse_one("bcc", value, encode)


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


def test_entries_of_nothing_are_left_out_of_a_header() -> None:
    assert len(parse_list("header 'To'", "a@b.example, ,c@d.example,", encode)) == 2


@pytest.mark.parametrize(
    "text", ["übel", "Retail, Import <desk@shop.example>", "a@b.example, Lee", "a@"]
)
def test_a_header_of_addresses_that_holds_something_else_is_refused(text: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^header 'Reply-To': "):
        parse_list("header 'Reply-To'", text, encode)


def test_a_comma_in_a_header_gets_the_advice_about_quotes() -> None:
    with pytest.raises(
        LettermintInvalidMessage, match="double quotes if it has commas"
    ):
        parse_list("header 'From'", "Retail, Import <desk@shop.example>", encode)


@pytest.mark.parametrize("text", ["Gäste: ann@example.com;", "Freunde: a@ü.example;"])
def test_a_group_outside_of_ascii_is_refused(text: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^header 'To': .* groups"):
        parse_list("header 'To'", text, encode)


def test_a_group_in_ascii_holds_addresses() -> None:
    mailboxes = parse_list(
        "header 'To'", "Team: Ann <a@b.example>, c@d.example; ", encode
    )
    assert [each.address for each in mailboxes] == ["a@b.example", "c@d.example"]
    assert parse_list("header 'To'", "undisclosed-recipients:;", encode) == []


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
    assert not set(mailbox.text) & set("\r\n\0")
    assert parse_one("to", mailbox.text, encode) == replace(
        mailbox, given=mailbox.address
    )


def named_by(header: str) -> list[tuple[str, str]]:
    """Return the names and addresses that the standard library reads in a header."""
    parsed: Any = HeaderRegistry()(
        "To", header.removeprefix("To: ").replace("\r\n", "")
    )
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
@example("=?utf-8?q?x?= <ann@example.com>")
def test_the_header_names_the_mailbox_of_the_command(text: str) -> None:
    try:
        mailbox = parse_one("to", text, encode)
    except LettermintInvalidMessage:
        return
    [(_, address)] = named_by(addresses("To", [mailbox]).decode())
    assert address == mailbox.address


@pytest.mark.parametrize(
    "mark",
    ['"', "(", "<", " ", "a,", "(a)", '"a"', "a.", r"\"", "(\\", "(a(b", "=?", "@,"],
)
def test_hostile_addresses_take_no_long_time(mark: str) -> None:
    with pytest.raises(LettermintInvalidMessage):
        parse_one("to", mark * 50_000 + "\\", encode)
