"""Attached files, texts and mail arrive as they are, or are refused by their name."""

from __future__ import annotations

import email
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

SIGNED_MAIL = (
    "DKIM-Signature: v=1; d=bank.example;\n\tb=" + "Zk" * 70 + "\n"
    "Subject:  two blanks\nX-Trailing: blank \n\nHello\n -- \n.\nFrom me\n"
)


# -- Mail ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [SIGNED_MAIL, BOUNCE.decode(), "no header", "\n\nx", "a: b"]
)
@pytest.mark.parametrize(
    "kind", [str, str.encode, lambda text: text.replace("\n", "\r\n")]
)
def test_attached_mail_keeps_its_octets(text: str, kind: Any) -> None:
    content = written(with_file("forwarded.eml", kind(text), "message/rfc822"))
    check(content)
    assert octets_of(content) == text.replace("\n", "\r\n").encode()
    assert found_in(content)[:2] == ("message/rfc822", "forwarded.eml")


def test_a_mail_from_the_file_system_keeps_its_octets(tmp_path: Path) -> None:
    path = tmp_path / "forwarded.eml"
    path.write_bytes(SIGNED_MAIL.encode())
    message = mail()
    message.attach_file(str(path))
    assert octets_of(written(message)) == SIGNED_MAIL.replace("\n", "\r\n").encode()


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


def test_an_attached_django_message_is_written_like_any_other() -> None:
    inner = mail(subject="größe", body="Grüße", to=["Bob <bob@größe.example>"])
    inner.bcc = ["hidden@mail.example"]
    content = written(with_file("a.eml", inner, "message/rfc822"))
    check(content)
    found = octets_of(content).decode()
    assert "\r\nTo: Bob <bob@xn--gre-6ka8i.example>\r\n" in found
    assert "\r\nMIME-Version: 1.0\r\n" in found
    assert found.endswith("\r\n\r\nGrüße\r\n")
    assert "hidden" not in found


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


@pytest.mark.parametrize("kind", ["multipart/x-mht", "Multipart/Mixed"])
def test_one_file_of_a_composite_type_is_octets(kind: str) -> None:
    content = written(with_file("page.mht", b"MIME-Version: 1.0\n", kind))
    assert found_in(content) == (OCTET_STREAM, "page.mht", b"MIME-Version: 1.0\n")


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("kind", ["text/plain", "image/png", "x-a/b"])
@pytest.mark.parametrize("octets", [b"page one\n", b"1\n.\n2\0\r", b"", b"\xff\xfe"])
def test_buffers_are_bytes(buffer: Any, kind: str, octets: bytes) -> None:
    content = written(with_file("scan", buffer(octets), kind))
    check(content)
    if kind == "text/plain" and octets != b"\xff\xfe":
        found, _, data = found_in(content)
        assert isinstance(data, bytes)
        assert data.replace(b"\r\n", b"\n") == octets.replace(b"\r", b"\n")
        assert found == kind
    else:
        kind = OCTET_STREAM if kind == "text/plain" else kind
        assert found_in(content) == (kind, "scan", octets)


@pytest.mark.parametrize("kind", ["application/json", "image/svg+xml"])
def test_text_for_a_type_that_is_not_text_is_utf_8(kind: str) -> None:
    text = '{"name": "Zoë"}\n'
    message = with_file("data", text, kind, encoding="iso-8859-1")
    assert found_in(written(message)) == (kind, "data", text.encode())


@pytest.mark.parametrize("given", ["iso-8859-1", '"ISO-8859-1"'])
@pytest.mark.parametrize("content", ["Größe", "Größe".encode("latin-1")], ids=type)
def test_the_charset_of_a_type_is_the_texts(given: str, content: Any) -> None:
    kind = f"text/csv; charset={given}; header=present"
    part = attached(written(with_entry(("a.csv", content, kind))))
    assert part.get_payload(decode=True) == "Größe".encode("latin-1")
    assert part.get_content_charset() == "iso-8859-1"
    assert part.get_param("header") == "present"


def test_a_type_may_have_parameters() -> None:
    message = mail()
    message.attach_alternative("BEGIN:VCALENDAR", "text/calendar; method=REQUEST")
    message.attach("a.json", "{}", "application/json; profile=x")
    message.attach("a.csv", "1", "text/csv; ")
    content = written(message)
    check(content)
    assert b'Content-Type: text/csv; charset="utf-8"\r\n' in content
    assert b'Content-Type: text/calendar; method=REQUEST; charset="utf-8"' in content
    assert b"Content-Type: application/json; profile=x\r\n" in content


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (("a.txt", "x"), ("text/plain", "a.txt", b"x")),
        (["a.txt", "x", None], ("text/plain", "a.txt", b"x")),
        (("a.txt", "x", ""), ("text/plain", "a.txt", b"x")),
        (("a", b"x", None), (OCTET_STREAM, "a", b"x")),
        ((None, b"1", None), (OCTET_STREAM, None, b"1")),
        (("a.eml", b"", None), ("message/rfc822", "a.eml", None)),
        ((gettext_lazy("a"), gettext_lazy("b"), "text/css"), ("text/css", "a", b"b")),
        (("a", SimpleLazyObject(lambda: b"1"), "x/y"), ("x/y", "a", b"1")),
    ],
)
def test_names_and_types_may_be_left_out_and_all_may_be_lazy(
    entry: Any, found: tuple[str, str | None, bytes]
) -> None:
    content = written(with_entry(entry))
    assert found_in(content) == found
    assert attached(content).get_content_disposition() == "attachment"


# -- What is refused -------------------------------------------------------------------------

OPEN_FILES = [io.BytesIO(b"1"), io.StringIO("1"), ContentFile(b"1", "a.bin")]
READ, NO_ENTRY = "pass its .read()", "give a MIME part or (name, content, type)"
BAD_TYPES = ["text", "text/", "/plain", "a b/c", "text/é", "text/plain\r\nX-Evil: 1"]
BAD_TYPES += [
    "text/plain; a=\n1",
    "text/\0plain",
    "text/plain; a=ü",
    "text/plain;\tb=c",
]


@pytest.mark.parametrize(
    ("message", "field", "rule"),
    [
        *(
            (with_entry(("a.bin", content, kind)), "attachment 'a.bin'", READ)
            for content in [*OPEN_FILES, {"a": 1}, ["a"], 5, object(), Path("a.bin")]
            for kind in ("x-a/b", "text/plain")
        ),
        (with_entry((None, 5, "x-a/b")), "attachment", READ),
        (with_entry(("a.bin", mail(), "text/plain")), "attachment 'a.bin'", READ),
        (with_file("a", "\ud900", "application/json"), "attachment 'a'", "surrogates"),
        *((mail(body=body), "body", READ) for body in [*OPEN_FILES, 5, ["a"]]),
        *(
            (with_entry(entry), "attachment", NO_ENTRY)
            for entry in [
                *(
                    Path("invoice.pdf"),
                    "invoice.pdf",
                    {"name": "a"},
                    mail(),
                    5,
                    None,
                    (),
                ),
                *(("a.pdf",), ("a", b"1", "x/y", "more"), {"a", "b"}, b"octets"),
            ]
        ),
        *(
            (with_file(name, b"1", "x/y"), "attachment's name", "line break")
            for name in ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b", "\udc80"]
        ),
        (with_entry((b"a.pdf", b"1", "x/y")), "attachment's name", "give it as text"),
        *(
            (with_entry(("a", "b", kind)), "attachment's type", "type/subtype")
            for kind in BAD_TYPES
        ),
    ],
)
def test_what_is_no_attachment_is_refused_by_name(
    message: EmailMessage, field: str, rule: str
) -> None:
    text = refusal(message)
    assert text.startswith(f"{field}: ")
    assert rule in text
