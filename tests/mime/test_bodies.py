"""Text in any charset arrives, in the plainest transfer encoding that carries it."""

from __future__ import annotations

import email.charset
from email import message_from_bytes
from email.charset import Charset
from typing import TYPE_CHECKING, Any

import pytest
from django.test import override_settings
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy

from .conformance import check
from .making import field, found_in, mail, refusal, with_file, written

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
        ("x\n" + "x" * 999 + "\nx", "quoted-printable"),
        ("a\0b\n", "quoted-printable"),
        ("Größe\n", "8bit"),
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


@pytest.mark.parametrize("size", range(70, 82))
@pytest.mark.parametrize("end", ["", " ", "\t", "=", ".", "é", " \n", " \0"])
def test_quoted_printable_lines_are_short_and_end_in_no_blank(
    size: int, end: str
) -> None:
    text = "x" * size + end + "\0\n"
    message = mail(body=text)
    check(written(message))
    assert decoded(message).replace(b"\r\n", b"\n").decode() == text


@pytest.mark.parametrize("size", [0, 57, 58, 57 * 256, 57 * 300])
def test_base64_lines_have_76_characters(size: int) -> None:
    content = written(with_file("a.bin", octets := b"\xff" * size, "x-a/b"))
    check(content)
    assert content.count(b"/" * 76 + b"\r\n") == size // 57
    assert found_in(content)[2] == octets


# -- Charsets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("utf8", "utf-8"),
        ("utf_8", "utf-8"),
        ("latin_1", "iso-8859-1"),
        ("latin9", "iso-8859-15"),
        ("iso-8859-8", "iso-8859-8"),
        ("cp1252", "windows-1252"),
        ("ks_c_5601-1987", "ks_c_5601-1987"),
        (Charset("shift_jis"), "iso-2022-jp"),
        (Charset("latin1"), "iso-8859-1"),
        (Charset("cp1252"), "windows-1252"),
        (Charset("cp037"), "ibm037"),
        (Charset("hz"), "hz-gb-2312"),
        (Charset("mac-roman"), "macintosh"),
        (Charset("utf-16-le"), "utf-16le"),
    ],
)
def test_charsets_have_the_names_that_readers_know(given: Any, named: str) -> None:
    message = mail(encoding=given)
    assert message_from_bytes(written(message)).get_content_charset() == named
    with override_settings(DEFAULT_CHARSET=given):
        message = mail()
        assert message_from_bytes(written(message)).get_content_charset() == named


@pytest.mark.parametrize("name", ["iso-8859-8-i", "ISO-8859-8-E", "csISO88598I"])
def test_the_name_of_a_hebrew_charset_keeps_the_direction(name: str) -> None:
    message = mail(body="שלום\n", encoding=name)
    message.attach_alternative(
        "שלום\n".encode("iso-8859-8"), f"text/html; charset={name}"
    )
    _, *leaves = message_from_bytes(written(message)).walk()
    for leaf in leaves:
        octets: Any = leaf.get_payload(decode=True)
        assert octets.decode("iso-8859-8").strip() == "שלום"
        assert leaf.get_content_charset() == name.lower()


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
    message = mail(body="10 €\nb", encoding=charset(name, encoding))
    message.attach_alternative("10 €\nb", "text/html")
    message.attach("a.txt", "10 €\nb", "text/plain")
    content = written(message)
    check(content)
    for leaf in message_from_bytes(content).walk():
        if not leaf.is_multipart():
            octets: Any = leaf.get_payload(decode=True)
            assert octets.decode(name) == "10 €\r\nb"
            assert leaf["Content-Transfer-Encoding"] == named
            assert leaf.get_content_charset() == name


@pytest.mark.parametrize("name", ["none", "rot13", "base64", "ü", "a b", "utf-8 "])
def test_what_is_no_charset_is_refused(name: str) -> None:
    assert refusal(mail(encoding=name)).startswith(f"encoding: {name!r} ")
    assert refusal(with_file("a.csv", "x", f"text/csv; charset={name!r}"))


def test_an_unknown_charset_of_a_file_is_refused_by_its_place() -> None:
    text = refusal(with_file("a.csv", "x", "text/csv; charset=none"))
    assert text.startswith("charset of attachment 'a.csv': 'none' cannot be sent")


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
    "text",
    [
        b"Gr\xc3\xb6\xc3\x9fe\n",
        gettext_lazy("Größe\n"),
        SimpleLazyObject(lambda: "Größe\n"),
    ],
)
def test_a_body_may_be_bytes_or_lazy(text: Any) -> None:
    assert body(mail(body=text)) == "Größe\r\n".encode()


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
    ("name", "value"),
    [
        ("content_subtype", ""),
        ("content_subtype", "html\r\nX-Evil: 1"),
        ("mixed_subtype", "a b"),
    ],
)
def test_a_bad_subtype_is_refused_by_the_name_of_its_attribute(
    name: str, value: str
) -> None:
    message = with_file("a.txt", "a", "text/plain", **{name: value})
    assert refusal(message).startswith(f"{name}: ")


@pytest.mark.parametrize(
    "value",
    ["<p>", ("<p>",), 5, (b"\xff", "text/html"), (["<p>"], "text/html"), ("<p>", "a")],
)
def test_what_is_no_alternative_is_refused(value: Any) -> None:
    message = mail()
    message.alternatives.append(value)
    assert refusal(message).startswith("alternative")
