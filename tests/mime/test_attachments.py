"""Attached files, texts and mail arrive as they are, or are refused by their name."""

from __future__ import annotations

import email
import io
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import HOSTILE, leaves
from tests.preparing import envelope

from .conformance import check, check_lines
from .making import (
    BOUNCE,
    OCTET_STREAM,
    attached,
    found_in,
    mail,
    octets_of,
    refusal,
    with_entry,
    with_file,
    written,
)

SIGNED_MAIL = (
    "DKIM-Signature: v=1; d=bank.example;\n\tb=" + "Zk" * 70 + "\n"
    "Subject:  two blanks\nX-Trailing: blank \n\nHello\n -- \n.\nFrom me\n"
)


# -- Mail ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [SIGNED_MAIL, BOUNCE.decode(), "no header", "\n\nx", "a: b"]
)
@pytest.mark.parametrize(
    "kind", [str, str.encode, lambda text: text.replace("\n", "\r\n"), Path]
)
def test_attached_mail_keeps_its_octets(text: str, kind: Any, tmp_path: Path) -> None:
    message = mail()
    if kind is Path:
        path = tmp_path / "forwarded.eml"
        path.write_bytes(text.encode())
        message.attach_file(str(path))
    else:
        message.attach("forwarded.eml", kind(text), "message/rfc822")
    content = written(message)
    check(content)
    assert octets_of(content) == text.replace("\n", "\r\n").encode()
    assert found_in(content)[:2] == ("message/rfc822", "forwarded.eml")


@pytest.mark.parametrize(
    "octets",
    [
        b"Subject: a last line without an end\n\n" + b"0" * 999,
        b"Subject: " + b"word " * 300 + b"\n\n\n",
        b"Subject: a\n\nb\0c\n",
        b"Subject: a\n\nprogress 10 %\rprogress 20 %\n",
    ],
)
def test_attached_mail_that_cannot_travel_goes_as_a_file(octets: bytes) -> None:
    message = with_file("log.eml", octets, "message/rfc822")
    message.attach("b.eml", b"Subject: other\n\n", "message/rfc822")
    content = written(message)
    check(content)
    parts: Any = email.message_from_bytes(content).get_payload()
    _, file, other = parts
    assert (file.get_content_type(), file.get_filename()) == (OCTET_STREAM, "log.eml")
    assert file.get_payload(decode=True) == octets
    assert other.get_content_type() == "message/rfc822"


def test_mail_of_8_bits_becomes_a_file_for_a_relay_without_8bitmime() -> None:
    octets = b"Subject: caf\xe9\r\n\r\nol\xe9\r\n"
    made = envelope(with_file("old.eml", octets, "message/rfc822"))
    assert octets_of(made.content) == octets
    assert b"\r\nContent-Transfer-Encoding: 8bit\r\n" in made.content
    seven = made.seven_bit()
    assert found_in(seven.content) == (OCTET_STREAM, "old.eml", octets)
    assert b"8bit" not in seven.content


@given(st.lists(st.sampled_from(HOSTILE), max_size=6).map("".join) | st.text())
def test_no_attached_mail_makes_commands_of_its_own(inner: str) -> None:
    octets = b"Subject: inner\r\n\r\n" + inner.encode("utf-8", "replace")
    made = envelope(with_file("mail.eml", octets, "message/rfc822", body="Hello"))
    for each in (made, made.seven_bit()):
        check_lines(each.content)
        # The parser may see a multipart in it, but never more than what was attached.
        assert leaves(each.content)[0] == b"Hello"


def test_an_attached_message_shows_no_blind_recipients() -> None:
    inner = mail(bcc=["hidden@mail.example"])
    found = octets_of(written(with_entry(("a.eml", inner, "message/rfc822"))))
    assert b"Subject: Hello\r\n" in found
    assert b"hidden" not in found


def parsed_with_injection() -> Any:
    inner = email.message_from_string("Subject: a\n\nb")
    inner["X-A"] = "a\nX-Evil: 1"
    return inner


@pytest.mark.parametrize(
    "inner",
    [
        mail(to=["Lee, Ann <ann@mail.example>"]),
        mail(headers={"X-A": "a\nb"}),
        mail(body="\ud800"),
        parsed_with_injection(),
        "Subject: \ud900\n\n",
    ],
)
def test_what_is_wrong_with_attached_mail_names_the_attachment(inner: Any) -> None:
    text = refusal(with_entry(("inner.eml", inner, "message/rfc822")))
    assert text.startswith("attachment 'inner.eml': ")


# -- Files and texts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (("a.txt", "x"), ("text/plain", "a.txt", b"x")),
        (["a.txt", "x", None], ("text/plain", "a.txt", b"x")),
        (("a", b"x", None), (OCTET_STREAM, "a", b"x")),
        ((None, b"1", ""), (OCTET_STREAM, None, b"1")),
        ((gettext_lazy("a"), gettext_lazy("b"), "text/css"), ("text/css", "a", b"b")),
        (("a", SimpleLazyObject(lambda: b"1"), "x/y"), ("x/y", "a", b"1")),
        # A mail without a type, and one file of a type for several (RFC 2045 6.4).
        (("a.eml", mail(), None), ("message/rfc822", "a.eml", None)),
        (("a.mht", b"1", "Multipart/x-mht"), (OCTET_STREAM, "a.mht", b"1")),
        # Buffers are bytes: of text, the line ends change only.
        (("a", memoryview(b"1\n.\n2\0\r"), "x/y"), ("x/y", "a", b"1\n.\n2\0\r")),
        (("a", bytearray(b"1\n.\r"), "text/x"), ("text/x", "a", b"1\r\n.\r\n")),
        (("a", memoryview(b"1\n.\r"), "text/x"), ("text/x", "a", b"1\r\n.\r\n")),
        (("a", b"\xff\n", "text/plain"), (OCTET_STREAM, "a", b"\xff\n")),
        # Text for a type that is not text is UTF-8.
        (("a.json", "Zoë", "x/json; y=z"), ("x/json", "a.json", "Zoë".encode())),
    ],
)
def test_a_file_arrives_as_it_was_given(
    entry: Any, found: tuple[str, str | None, bytes | None]
) -> None:
    content = written(with_entry(entry, encoding="iso-8859-1"))
    check(content)
    assert found_in(content) == found
    assert attached(content).get_content_disposition() == "attachment"


@pytest.mark.parametrize("given", ["iso-8859-1", '"ISO-8859-1"'])
@pytest.mark.parametrize("content", ["Größe", "Größe".encode("latin-1")], ids=type)
def test_the_charset_of_a_type_is_the_texts(given: str, content: Any) -> None:
    kind = f"text/csv; charset={given}; header=present"
    part = attached(written(with_entry(("a.csv", content, kind))))
    assert part.get_payload(decode=True) == "Größe".encode("latin-1")
    assert part.get_content_charset() == "iso-8859-1"
    assert part.get_param("header") == "present"


def test_a_calendar_keeps_its_method() -> None:
    message = mail()
    message.attach_alternative("BEGIN:VCALENDAR", "text/calendar; method=REQUEST; ")
    expected = b'Content-Type: text/calendar; method=REQUEST; charset="utf-8"\r\n'
    assert expected in written(message)


# -- What is refused -------------------------------------------------------------------------

OPEN_FILES = [io.BytesIO(b"1"), io.StringIO("1"), ContentFile(b"1", "a.bin")]
READ, NO_ENTRY = "pass its .read()", "give a MIME part or (name, content, type)"
BAD_TYPES = ["text", "text/", "/plain", "a b/c", "text/é", "text/plain\r\nX-Evil: 1"]
BAD_TYPES += ["text/plain; a=\n1", "text/\0plain", "text/plain; a=ü", "text/x;\tb=c"]


@pytest.mark.parametrize(
    ("entry", "field", "rule"),
    [
        *(
            (("a.bin", content, kind), "attachment 'a.bin'", READ)
            for content in [*OPEN_FILES, {"a": 1}, 5, Path("a.bin")]
            for kind in ("x-a/b", "text/plain")
        ),
        ((None, 5, "x-a/b"), "attachment", READ),
        (("a.bin", mail(), "text/plain"), "attachment 'a.bin'", READ),
        (("a", "\ud900", "application/json"), "attachment 'a'", "surrogates"),
        *(
            (entry, "attachment", NO_ENTRY)
            for entry in [
                *(Path("a.pdf"), "invoice.pdf", {"name": "a"}, mail(), None),
                *(("a.pdf",), ("a", b"1", "x/y", "more"), {"a", "b"}),
            ]
        ),
        *(
            ((name, b"1", "x/y"), "attachment's name", "line break")
            for name in ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b", "\udc80"]
        ),
        ((b"a.pdf", b"1", "x/y"), "attachment's name", "give it as text"),
        *(
            (("a", "b", kind), "attachment's type", "type/subtype")
            for kind in BAD_TYPES
        ),
    ],
)
def test_what_is_no_attachment_is_refused_by_name(
    entry: Any, field: str, rule: str
) -> None:
    text = refusal(with_entry(entry))
    assert text.startswith(f"{field}: ")
    assert rule in text


@pytest.mark.parametrize("body", [*OPEN_FILES, 5, ["a"]])
def test_what_is_no_body_is_refused(body: Any) -> None:
    assert refusal(mail(body=body)).endswith(f"{READ}.")
