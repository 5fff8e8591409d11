"""Text in any charset arrives, in the plainest transfer encoding that carries it."""

from __future__ import annotations

import email.charset
import sys
from email import message_from_bytes
from email.charset import Charset
from typing import TYPE_CHECKING, Any

import pytest
from django.test import override_settings
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.mime import with_crlf
from django_lettermint.mime.bodies import base64
from tests.preparing import envelope

from .conformance import check
from .making import field, mail, refusal, with_file, written

if TYPE_CHECKING:
    from django.core.mail import EmailMessage


def body(message: EmailMessage) -> bytes:
    return written(message).partition(b"\r\n\r\n")[2]


def decoded(message: EmailMessage) -> bytes:
    found = message_from_bytes(written(message)).get_payload(decode=True)
    assert isinstance(found, bytes)
    return found


def kinds(message: EmailMessage) -> list[str]:
    parsed = message_from_bytes(written(message))
    return [part.get_content_type() for part in parsed.walk()]


def charset(name: str, encoding: int | None) -> Charset:
    made = Charset(name)
    made.body_encoding = encoding  # type: ignore[assignment] # typeshed has no None
    return made


# -- Transfer encodings --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Text\n", "7bit"),
        ("", "7bit"),
        ("x" * 998 + "\n", "7bit"),
        ("x" * 998, "7bit"),
        ("x" * 999, "quoted-printable"),
        ("x" * 1000, "quoted-printable"),
        ("x" * 999 + "\n", "quoted-printable"),
        ("x\n" + "x" * 999 + "\nx", "quoted-printable"),
        ("a\0b\n", "quoted-printable"),
        ("Größe\n", "8bit"),
        ("é" * 499 + "\n", "8bit"),
        ("é" * 500 + "\n", "quoted-printable"),
    ],
)
def test_text_goes_as_it_is_unless_a_line_is_too_long(text: str, encoding: str) -> None:
    message = mail(body=text)
    check(written(message))
    assert field(message, "Content-Transfer-Encoding") == encoding
    assert decoded(message).decode().split() == text.split()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_crlf(end: str) -> None:
    assert body(mail(body=f"a{end}{end}.{end}b{end}")) == b"a\r\n\r\n.\r\nb\r\n"


def test_no_line_end_is_added_to_a_part() -> None:
    content = written(with_file("a.txt", "no end", "text/plain", body="neither"))
    assert b"\r\n\r\nneither\r\n--" in content
    assert b"\r\n\r\nno end\r\n--" in content


@pytest.mark.parametrize("size", range(70, 82))
@pytest.mark.parametrize("end", ["", " ", "\t", "=", ".", "é", " \n", " \0"])
def test_quoted_printable_lines_are_short_and_end_in_no_blank(
    size: int, end: str
) -> None:
    text = "x" * size + end + "\0\n"
    message = mail(body=text)
    check(written(message))
    assert decoded(message).replace(b"\r\n", b"\n").decode() == text


@pytest.mark.parametrize("size", [0, 1, 57, 58, 57 * 256 - 1, 57 * 256, 57 * 300])
def test_base64_lines_have_76_characters(size: int) -> None:
    octets = (bytes(range(256)) * (size // 256 + 1))[:size]
    *lines, last = base64(octets).split(b"\r\n")
    assert all(len(line) == 76 for line in lines)
    assert len(last) <= 76
    check(written(with_file("a.bin", octets, "x-a/b")))


@given(st.binary(max_size=3000))
def test_every_line_end_becomes_crlf_and_nothing_else_changes(octets: bytes) -> None:
    content = with_crlf(octets)
    plain = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n")
    assert content.replace(b"\r\n", b"\n").removesuffix(b"\n") == plain
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert content.endswith(b"\r\n")
    assert with_crlf(content) == content


def test_a_multipart_says_what_its_parts_need() -> None:
    message = with_file("a.txt", "a", "text/plain", body="Größe")
    message.attach_alternative("<p>", "text/html")
    made = envelope(message)
    assert made.content.count(b"Content-Transfer-Encoding: 8bit\r\n") == 3
    assert b"8bit" not in made.seven_bit().content


# -- Charsets ------------------------------------------------------------------------------

TEXTS = {"iso-8859-15": "10 € für Öl\n", "koi8-r": "Заказ\n", "shift_jis": "日本語\n"}


@pytest.mark.parametrize("name", TEXTS)
def test_other_charsets_arrive_in_all_texts(name: str) -> None:
    message = mail(body=TEXTS[name], encoding=name)
    message.attach_alternative(TEXTS[name], "text/html")
    message.attach("a.csv", TEXTS[name], "text/csv")
    made = envelope(message)
    for each in (made.content, made.seven_bit().content):
        leaves = [
            part for part in message_from_bytes(each).walk() if not part.is_multipart()
        ]
        assert [leaf.get_content_charset() for leaf in leaves] == [name] * 3
        for leaf in leaves:
            octets: Any = leaf.get_payload(decode=True)
            assert octets.decode(name).strip() == TEXTS[name].strip()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("utf8", "utf-8"),
        ("UTF-8", "utf-8"),
        ("utf_8", "utf-8"),
        ("latin_1", "iso-8859-1"),
        ("Latin-1", "iso-8859-1"),
        ("latin9", "iso-8859-15"),
        ("ISO-8859-15", "iso-8859-15"),
        ("iso-8859-8", "iso-8859-8"),
        ("cp1252", "windows-1252"),
        ("ks_c_5601-1987", "ks_c_5601-1987"),
        ("us-ascii", "us-ascii"),
        (Charset("shift_jis"), "iso-2022-jp"),
        (Charset("latin1"), "iso-8859-1"),
        (Charset("cp1252"), "windows-1252"),
    ],
)
def test_charsets_have_the_names_that_readers_know(given: Any, named: str) -> None:
    message = mail(encoding=given)
    assert message_from_bytes(written(message)).get_content_charset() == named
    with override_settings(DEFAULT_CHARSET=given):
        message = mail()
        assert message_from_bytes(written(message)).get_content_charset() == named


@pytest.mark.skipif(sys.version_info < (3, 15), reason="Python does not know them")
@pytest.mark.parametrize("name", ["iso-8859-8-i", "ISO-8859-8-E", "csISO88598I"])
def test_the_name_of_a_hebrew_charset_keeps_the_direction(name: str) -> None:
    message = mail(body="שלום\n", encoding=name)
    found = message_from_bytes(written(message)).get_content_charset()
    assert found == name.lower()


@pytest.mark.parametrize(
    ("codec", "named"), [("shift_jis", "x-own"), (None, "us-ascii"), ("", "us-ascii")]
)
def test_a_charset_object_may_have_another_codec_than_its_name(
    codec: str | None, named: str
) -> None:
    given = charset(named, None)
    given.output_codec = codec
    text = "日本語" if codec else "Text"
    message = mail(body=text, encoding=given)
    assert message_from_bytes(written(message)).get_content_charset() == named
    assert decoded(message).decode(codec or named).strip() == text


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-32", "cp500"])
def test_charsets_with_other_line_ends_go_in_base64(name: str) -> None:
    message = mail(body="Größe\nb\r", encoding=name)
    check(written(message))
    assert field(message, "Content-Transfer-Encoding") == "base64"
    assert decoded(message).decode(name) == "Größe\r\nb\r\n"


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        (email.charset.QP, "quoted-printable"),
        (email.charset.BASE64, "base64"),
        (None, "8bit"),
    ],
)
@pytest.mark.parametrize("name", ["iso-8859-15", "utf-8"])
def test_a_charset_object_decides_the_transfer_encoding(
    name: str, encoding: int | None, named: str
) -> None:
    text = "10 € für Öl\nb"
    message = mail(body=text, encoding=charset(name, encoding))
    message.attach_alternative("<p>€", "text/html")
    message.attach("a.txt", "€", "text/plain")
    content = written(message)
    check(content)
    leaves = [
        part for part in message_from_bytes(content).walk() if not part.is_multipart()
    ]
    assert {leaf["Content-Transfer-Encoding"] for leaf in leaves} == {named}
    assert {leaf.get_content_charset() for leaf in leaves} == {name}
    octets: Any = leaves[0].get_payload(decode=True)
    assert octets.decode(name).splitlines() == text.splitlines()


@pytest.mark.parametrize("name", ["none", "rot13", "base64", "ü", "a b", "utf-8 "])
def test_what_is_no_charset_is_refused(name: str) -> None:
    assert refusal(mail(encoding=name)).startswith(f"encoding: {name!r} is refused")
    assert refusal(with_file("a.csv", "x", f"text/csv; charset={name!r}"))


def test_an_unknown_charset_of_a_file_is_refused_by_its_place() -> None:
    text = refusal(with_file("a.csv", "x", "text/csv; charset=none"))
    assert text.startswith("charset of attachment 'a.csv': 'none' is refused")


@pytest.mark.parametrize(
    ("text", "keywords"),
    [
        ("odd \ud900\n", {}),
        ("☃", {"encoding": "iso-8859-15"}),
        # Python would write a backslash.
        *(("¥", {"encoding": name}) for name in ("shift_jis", "euc-jp")),
    ],
)
def test_text_that_does_not_fit_its_charset_is_refused_by_its_place(
    text: str, keywords: dict[str, Any]
) -> None:
    assert refusal(mail(body=text, **keywords)).startswith("body: ")
    message = mail(**keywords)
    message.attach_alternative(text, "text/html")
    assert refusal(message).startswith("alternative: ")
    message = with_file("a.txt", text, "text/plain", **keywords)
    assert refusal(message).startswith("attachment 'a.txt': ")


# -- Bodies and alternatives ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [b"Gr\xc3\xb6\xc3\x9fe\n", gettext_lazy("Größe\n"), mark_safe("Größe\n")]
)
def test_a_body_may_be_bytes_or_lazy(text: Any) -> None:
    assert body(mail(body=text)) == "Größe\r\n".encode()


@pytest.mark.parametrize("name", ["utf-8", "utf-16"])
def test_a_body_may_be_a_lazy_object_that_holds_text(name: str) -> None:
    lazy: Any = SimpleLazyObject(lambda: "Größe\r\n")
    message = mail(body=lazy, encoding=name)
    assert decoded(message).decode(name) == "Größe\r\n"


@pytest.mark.parametrize("subtype", ["plain", "html", "markdown"])
def test_the_content_subtype_holds(subtype: str) -> None:
    message = mail(content_subtype=subtype)
    assert field(message, "Content-Type") == f'text/{subtype}; charset="utf-8"'


def test_alternatives_stand_in_front_of_attachments() -> None:
    message = mail()
    message.attach_alternative("<p>", "text/html")
    message.attach_alternative(b"BEGIN", "text/calendar")
    message.attach_alternative(b"1", "application/x-own")
    message.attach_alternative(b"1", "multipart/related")
    message.attach("a.txt", "a", "text/plain")
    assert kinds(message) == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "text/calendar",
        "application/x-own",
        "application/octet-stream",
        "text/plain",
    ]


def test_without_a_body_there_is_no_part_for_it() -> None:
    message = mail(body="")
    assert kinds(message) == ["text/plain"]
    message.attach_alternative("<p>", "text/html")
    assert kinds(message) == ["multipart/alternative", "text/html"]
    message = with_file("a.pdf", b"1", "application/pdf", body="")
    assert kinds(message) == ["multipart/mixed", "application/pdf"]


def test_a_message_may_name_other_multiparts() -> None:
    message = with_file("a.png", b"1", "image/png", mixed_subtype="related")
    message.attach_alternative("<p>", "text/html")
    message.alternative_subtype = "parallel"  # type: ignore[attr-defined] # not in stubs
    assert kinds(message)[:2] == ["multipart/related", "multipart/parallel"]


@pytest.mark.parametrize(
    "change",
    [
        {"content_subtype": ""},
        {"content_subtype": "html\r\nX-Evil: 1"},
        {"mixed_subtype": "a b"},
        *(
            {"alternative": each}
            for each in ("<p>", ("<p>",), 5, None, ("a", "b", "c"))
        ),
        {"alternative": (b"\xff", "text/html")},
        {"alternative": (["<p>"], "text/html")},
    ],
)
def test_what_is_wrong_with_a_body_is_refused_by_its_name(
    change: dict[str, Any],
) -> None:
    [(name, value)] = change.items()
    message = with_file("a.txt", "a", "text/plain")
    if name == "alternative":
        message.alternatives.append(value)
    else:
        vars(message)[name] = value
    assert refusal(message).startswith(f"{name}: ")
