"""Attached files, texts and mail arrive as they are, or are refused by their name."""

from __future__ import annotations

import email
import io
from email import policy
from email.header import Header
from email.message import EmailMessage as MimeMessage
from email.message import Message, MIMEPart
from email.mime.base import MIMEBase
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.mail import EmailMessage
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy

from tests.preparing import envelope

from .conformance import check, check_header, check_lines
from .making import attached, found_in, mail, refusal, with_entry, with_file, written
from .readers import decoded

OCTET_STREAM = "application/octet-stream"
SIGNED_MAIL = (
    "DKIM-Signature: v=1; d=bank.example;\n\tb=" + "Zk" * 70 + "\n"
    "Subject:  two blanks\nX-Trailing: blank \n\nHello\n -- \n.\nFrom me\n"
)
BOUNCE = (
    b"Content-Type: multipart/report; boundary=r\n\n--r\n"
    b"Content-Type: message/delivery-status\n\nReporting-MTA: dns; mail.example\n\n"
    b"Final-Recipient: rfc822; x@mail.example\nno colon in this line\n--r--\n"
)


def octets_of(content: bytes) -> bytes:
    """Return the body of the last part, a mail, as it stands on the wire."""
    boundary = str(email.message_from_bytes(content).get_boundary()).encode()
    *_, part, _ = content.split(b"\r\n--" + boundary)
    head, _, body = part.partition(b"\r\n\r\n")
    assert b"Content-Type: message/rfc822\r\n" in head
    return body


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
    "raw",
    [
        BOUNCE,
        b"Subject: a\r\n\tb\r\n c\r\nX:  y \r\n\r\nbody",
        b"Content-Type: text/plain\nSubject: caf\xe9\n\nol\xe9\n",
        b"\nno header at all\n",
    ],
)
@pytest.mark.parametrize("how", [policy.compat32, policy.default])
def test_a_parsed_mail_keeps_all_its_lines(raw: bytes, how: Any) -> None:
    parsed = email.message_from_bytes(raw, policy=how)
    content = written(with_file("bounce.eml", parsed, "message/rfc822"))
    found = octets_of(content).splitlines()
    assert [line.split() for line in found if line] == [
        line.split() for line in raw.splitlines() if line
    ]


CANNOT_TRAVEL = [
    b"Subject: a last line without an end\n\n" + b"0" * 999,
    b"Subject: log\n\n" + b"0" * 1400 + b"\n",
    b"Subject: " + b"word " * 300 + b"\n\n\n",
    b"Subject: a\n\nb\0c\n",
    b"Subject: a\n\nprogress 10 %\rprogress 20 %\n",
]


@pytest.mark.parametrize("octets", CANNOT_TRAVEL)
def test_attached_mail_that_cannot_travel_goes_as_a_file(octets: bytes) -> None:
    message = with_file("log.eml", octets, "message/rfc822")
    message.attach("b.eml", b"Subject: other\n\n", "message/rfc822")
    parts: Any = email.message_from_bytes(written(message)).get_payload()
    assert parts[1].get_content_type() == OCTET_STREAM
    assert parts[1].get_filename() == "log.eml"
    assert parts[1].get_payload(decode=True) == octets
    assert parts[2].get_content_type() == "message/rfc822"
    check(written(message))


@pytest.mark.parametrize("octets", CANNOT_TRAVEL[:4])
def test_a_mime_object_with_mail_that_cannot_travel_becomes_a_file(
    octets: bytes,
) -> None:
    part = MIMEMessage(email.message_from_bytes(octets))
    part.add_header("Content-Disposition", "attachment", filename="log.eml")
    kind, name, found = found_in(written(with_entry(part)))
    assert (kind, name) == (OCTET_STREAM, "log.eml")
    assert isinstance(found, bytes)
    assert found.split() == octets.split()


def test_a_file_of_mail_without_a_name_is_still_a_file() -> None:
    part = MIMEMessage(email.message_from_bytes(CANNOT_TRAVEL[0]))
    content = written(with_entry(part))
    assert attached(content).get_content_disposition() == "attachment"
    assert attached(content).get_filename() is None


def test_mail_of_8_bits_becomes_a_file_for_a_relay_without_8bitmime() -> None:
    message = with_file("old.eml", b"Subject: caf\xe9\n\nol\xe9\n", "message/rfc822")
    message.attach("b.eml", b"Subject: other\n\n", "message/rfc822")
    made = envelope(message)
    assert b"\r\nContent-Transfer-Encoding: 8bit\r\n" in made.content
    seven = made.seven_bit()
    parts: Any = email.message_from_bytes(seven.content).get_payload()
    assert parts[1].get_content_type() == OCTET_STREAM
    assert parts[1].get_filename() == "old.eml"
    assert parts[1].get_payload(decode=True) == b"Subject: caf\xe9\r\n\r\nol\xe9\r\n"
    assert parts[2].get_content_type() == "message/rfc822"
    assert b"8bit" not in seven.content


def test_an_attached_django_message_is_written_like_any_other() -> None:
    inner = mail(subject="größe", body="Grüße", to=["Bob <bob@größe.example>"])
    inner.bcc = ["hidden@mail.example"]
    content = written(with_file("a.eml", inner, "message/rfc822"))
    check(content)
    found = octets_of(content)
    assert "=?utf-8?" in found.decode()
    assert "\r\n\r\nGrüße" in found.decode()
    assert b"hidden" not in content
    assert b"MIME-Version: 1.0\r\n" in found


@pytest.mark.parametrize(
    "inner",
    [
        mail(to=["Lee, Ann <ann@mail.example>"]),
        mail(headers={"X-A": "a\nb"}),
        mail(body="\ud800"),
        email.message_from_string("Subject: a\n\nb"),
    ],
)
def test_what_is_wrong_with_an_attached_message_names_the_attachment(
    inner: Any,
) -> None:
    if not isinstance(inner, EmailMessage):
        inner["X-A"] = "a\nX-Evil: 1"
    text = refusal(with_entry(("inner.eml", inner, "message/rfc822")))
    assert text.startswith("attachment 'inner.eml': ")


def test_the_type_of_an_attached_message_may_be_left_out() -> None:
    assert found_in(written(with_entry(("a.eml", mail(), None))))[0] == "message/rfc822"


def test_a_message_of_another_type_is_refused() -> None:
    text = refusal(with_entry(("a.txt", mail(), "text/plain")))
    assert text.startswith("attachment 'a.txt': ")


@pytest.mark.parametrize(
    "kind", ["multipart/x-mht", "multipart/related", "Multipart/Mixed"]
)
def test_one_file_of_a_composite_type_is_octets(kind: str) -> None:
    content = written(with_file("page.mht", b"MIME-Version: 1.0\n", kind))
    assert found_in(content) == (OCTET_STREAM, "page.mht", b"MIME-Version: 1.0\n")


def test_a_file_of_a_composite_type_is_octets_from_an_own_class_too() -> None:
    class Own(EmailMessage):
        def message(self, *arguments: Any, **keywords: Any) -> Any:
            return super().message(*arguments, **keywords)

    message = Own("Hello", "Text\n", "desk@shop.example", ["you@mail.example"])
    message.attach("page.mht", b"0" * 1200, "multipart/x-mht")
    assert found_in(written(message)) == (OCTET_STREAM, "page.mht", b"0" * 1200)


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/pdf", "image/png", "x-a/b"]
)
@pytest.mark.parametrize("octets", [b"page one\n", b"1\n.\n2\0\r", b"", b"\xff\xfe"])
def test_buffers_are_bytes(buffer: Any, kind: str, octets: bytes) -> None:
    content = written(with_file("scan", buffer(octets), kind))
    check(content)
    found, name, data = found_in(content)
    assert name == "scan"
    if kind == "text/plain" and octets != b"\xff\xfe":
        assert found == kind
        assert isinstance(data, bytes)
        assert data.replace(b"\r\n", b"\n") == octets.replace(b"\r", b"\n")
    else:
        assert found == (OCTET_STREAM if kind == "text/plain" else kind)
        assert data == octets


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    "octets", [b"1\n.\n2\0\r", b"\r\n", b"ascii\n", b"\xe9" * 2000]
)
def test_the_octets_of_a_mime_object_arrive(buffer: Any, octets: bytes) -> None:
    part = MIMEBase("application", "x-scan")
    part.set_payload(buffer(octets))
    message = with_entry(part)
    content = written(message)
    check(content)
    assert found_in(content)[2] == octets


@pytest.mark.parametrize("octets", [b"a\n.\nb", b"a\0b", b"\xe9" * 2000, b"x" * 2000])
def test_the_text_of_a_mime_object_arrives(octets: bytes) -> None:
    part = MIMEText("")
    part.set_payload(octets)
    part.set_param("charset", "iso-8859-1")
    content = written(with_entry(part))
    check(content)
    found = found_in(content)[2]
    assert isinstance(found, bytes)
    assert found.replace(b"\r\n", b"\n") == octets


def test_text_that_a_mime_object_holds_as_str_is_utf_8() -> None:
    part = MIMEBase("text", "plain", charset="utf-8")
    part.set_payload("Größe")
    assert found_in(written(with_entry(part)))[2] == "Größe".encode()


@pytest.mark.parametrize("encoding", [None, "7bit", "8bit"])
def test_text_of_8_bits_in_a_mime_object_says_so(encoding: str | None) -> None:
    part = MIMEBase("text", "calendar", charset="utf-8")
    part.set_payload("SUMMARY:Größe\r\n".encode())
    if encoding:
        part["Content-Transfer-Encoding"] = encoding
    check(written(with_entry(part)))
    assert part["Content-Transfer-Encoding"] == encoding


def test_parts_of_parts_are_written_each_as_it_needs() -> None:
    part = MIMEMultipart("related")
    part.preamble = "This is a message in several parts."
    part.attach(MIMEText("x" * 1200))
    inner = MIMEBase("application", "x-scan")
    inner.set_payload(b"1\n2\0")
    part.attach(inner)
    content = written(with_entry(part))
    check(content)
    parts: Any = attached(content).get_payload()
    assert [each.get_payload(decode=True) for each in parts] == [b"x" * 1200, b"1\n2\0"]
    assert part.get_boundary() is None


def test_a_part_of_the_newer_kind_is_written() -> None:
    part = MIMEPart()
    part.set_content(b"\x89PNG\n", maintype="image", subtype="png", cid="<logo>")
    part.add_header("Content-Disposition", "inline", filename="größe.png")
    content = written(with_entry(part))
    check(content)
    assert found_in(content) == ("image/png", "größe.png", b"\x89PNG\n")
    assert attached(content)["Content-ID"] == "<logo>"


@pytest.mark.parametrize("end", [b"", b"x" * 1200])
def test_a_multipart_without_a_boundary_is_sent(end: bytes) -> None:
    raw = b"Content-Type: multipart/report\n\n--r\n\nlost\n--r--\n" + end
    content = written(with_entry(email.message_from_bytes(raw)))
    check_lines(content)
    kind, _, found = found_in(content)
    assert kind == (OCTET_STREAM if end else "multipart/report")
    assert isinstance(found, bytes)
    assert found.split() == raw.partition(b"\n\n")[2].split()


@pytest.mark.parametrize(
    "value", ["größe", "größe\x0bklein\u2028", Header("größe", "utf-8")]
)
def test_fields_of_a_part_that_are_not_ascii_are_encoded(value: Any) -> None:
    part = MIMEText("text")
    part["Content-Description"] = value
    content = written(with_entry(part))
    check(content)
    assert decoded(str(attached(content)["Content-Description"])) == str(value)


def test_the_header_of_a_message_that_python_made_is_written_by_the_same_rules() -> (
    None
):
    inner = MimeMessage()
    inner["Subject"] = "é" * 200
    inner["To"] = (
        '"Größe, Import and everything else under one roof (Sales)" <a@größe.example>'
    )
    inner["Cc"] = "undisclosed"
    inner["X-Signature"] = "sha256=" + "ab" * 100
    inner.set_content("text")
    content = written(with_entry(("a.eml", inner, "message/rfc822")))
    octets = octets_of(content)
    check_header(octets.split(b"MIME-Version")[0])
    found: Any = email.message_from_bytes(octets, policy=policy.default)
    assert found["Subject"] == "é" * 200
    assert found["To"].addresses[0].addr_spec == "a@xn--gre-6ka8i.example"
    assert found["Cc"] == "undisclosed"
    assert found["X-Signature"] == inner["X-Signature"]
    inner["List-Post"] = "<https://lists.example/ü>"
    text = refusal(with_entry(("a.eml", inner, "message/rfc822")))
    assert text.startswith("attachment 'a.eml': header 'List-Post': ")


def test_folded_fields_of_a_part_stay_as_they_are() -> None:
    part = MIMEText("text")
    part["X-Folded"] = "one\n two\r\n\tthree"
    assert b"X-Folded: one\r\n two\r\n\tthree\r\n" in written(with_entry(part))


@pytest.mark.parametrize("value", ["x" * 1100, "a\0b"])
def test_a_field_of_a_part_that_no_line_can_hold_is_refused(value: str) -> None:
    part = MIMEText("text")
    part["X-Long"] = value
    assert refusal(with_entry(part)).startswith("header 'X-Long': ")


def test_a_part_without_a_header_is_written() -> None:
    part = MIMEMultipart()
    bare: Any = Message()
    bare.set_payload("no header")
    part.attach(bare)
    part.attach(MIMEText("x" * 1200))
    parts: Any = attached(written(with_entry(part))).get_payload()
    assert parts[0].get_payload() == "no header"
    assert parts[1].get_payload(decode=True) == b"x" * 1200


def test_a_payload_that_is_neither_text_nor_octets_is_refused() -> None:
    part = MIMEBase("application", "x-scan")
    payloads: list[Any] = [[MIMEText("in no multipart")], 5]
    for payload in payloads:
        part.set_payload(payload)
        assert "payload" in refusal(with_entry(part))


@pytest.mark.parametrize(
    "kind", ["application/json", "application/xml", "image/svg+xml"]
)
def test_text_for_a_type_that_is_not_text_is_utf_8(kind: str) -> None:
    text = '{"name": "Zoë"}\n'
    message = with_file("data", text, kind, encoding="iso-8859-1")
    assert found_in(written(message)) == (kind, "data", text.encode())


@pytest.mark.parametrize(
    "content",
    [
        io.BytesIO(b"1"),
        io.StringIO("1"),
        ContentFile(b"1", "a.bin"),
        {"a": 1},
        ["a"],
        5,
        object(),
        Path("a.bin"),
    ],
)
def test_what_is_no_content_is_refused_by_name(content: object) -> None:
    for entry in (("list.bin", content, "x-a/b"), ("list.bin", content, "text/plain")):
        text = refusal(with_entry(entry))
        assert text.startswith("attachment 'list.bin': ")
        assert "pass its .read()" in text
    assert refusal(with_entry((None, content, "x-a/b"))).startswith("attachment: ")


@pytest.mark.parametrize("body", [io.StringIO("Text\n"), io.BytesIO(b"1"), 5, ["a"]])
def test_a_body_that_is_no_text_is_refused(body: object) -> None:
    text = refusal(mail(body=body))
    assert text.startswith("body: ")
    assert "pass its .read()" in text


@pytest.mark.parametrize(
    "entry",
    [
        *(Path("invoice.pdf"), "invoice.pdf", {"name": "a"}, mail(), 5, None, ()),
        *(("a.pdf",), ("a", b"1", "x/y", "more"), {"a", "b"}, b"octets"),
    ],
)
def test_what_is_no_attachment_is_refused(entry: object) -> None:
    text = refusal(with_entry(entry))
    assert text.startswith("attachment: ")
    assert "give a MIME part or (name, content, type)" in text


@pytest.mark.parametrize(
    "entry", [("a.txt", "x"), ["a.txt", "x", None], ("a.txt", "x", "")]
)
def test_the_type_is_guessed_by_the_name(entry: Any) -> None:
    assert found_in(written(with_entry(entry))) == ("text/plain", "a.txt", b"x")


def test_a_file_needs_no_name_and_no_type() -> None:
    content = written(with_entry((None, b"1", None)))
    assert found_in(content) == (OCTET_STREAM, None, b"1")
    assert attached(content).get_content_disposition() == "attachment"


def test_lazy_names_and_contents_are_taken() -> None:
    entry: Any = (gettext_lazy("a.txt"), gettext_lazy("text"), "text/plain")
    assert found_in(written(with_entry(entry))) == ("text/plain", "a.txt", b"text")
    entry = ("a.bin", SimpleLazyObject(lambda: b"1"), "x-a/b")
    assert found_in(written(with_entry(entry))) == ("x-a/b", "a.bin", b"1")


FILE_NAMES = [
    *("=?utf-8?q?a?=.pdf", 'a"b.pdf', "a\\b.pdf", "50%.pdf", "%41.pdf", "a;b=c.pdf"),
    *(
        " a.pdf",
        "a.pdf ",
        "  ",
        "a  b.pdf",
        "a\tb.pdf",
        "a\x0bb\x85c\u2028d.pdf",
        "'a'.pdf",
    ),
    *(
        "größe.pdf",
        "日本.pdf",
        "🎉.pdf",
        "utf-8''a.pdf",
        "a*0*=b.pdf",
        "(a).pdf",
        "a,b.pdf",
    ),
    *("x" * 300, "é" * 300, "x " * 150 + "x", "a/b.pdf", "..", "[1].pdf", "a:b?.pdf"),
]


@pytest.mark.parametrize("name", FILE_NAMES)
def test_file_names_are_read_as_given(name: str) -> None:
    content = written(with_file(name, b"1", "application/pdf"))
    check(content)
    assert found_in(content)[1] == name
    newer: Any = email.message_from_bytes(content, policy=policy.default)
    [part] = newer.iter_attachments()
    assert part["Content-Disposition"].params["filename"] == name


def test_a_simple_file_name_is_in_quotes() -> None:
    content = written(with_file("Invoice 7 (paid).pdf", b"1", "application/pdf"))
    assert b'attachment; filename="Invoice 7 (paid).pdf"\r\n' in content


@pytest.mark.parametrize("name", ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b", "\udc80"])
def test_a_line_break_in_a_file_name_is_refused(name: str) -> None:
    text = refusal(with_file(name, b"1", "application/pdf"))
    assert text.startswith("attachment's name: ")


@pytest.mark.parametrize(
    "kind",
    [
        *("text", "text/", "/plain", "a b/c", "text/é", "text/plain\r\nX-Evil: 1"),
        *("text/plain; a=\n1", "text/\0plain", "text/plain; a=ü", "text/plain;\tb=c"),
    ],
)
def test_types_of_another_form_are_refused(kind: str) -> None:
    assert refusal(with_entry(("a", "b", kind))).startswith("attachment's type: ")
    message = mail()
    message.attach_alternative("b", kind)
    assert refusal(message).startswith("alternative's type: ")


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


@pytest.mark.parametrize("given", ["iso-8859-1", '"ISO-8859-1"'])
def test_the_charset_of_a_type_is_the_texts(given: str) -> None:
    kind = f"text/csv; charset={given}; header=present"
    for entry in (("a.csv", "Größe", kind), ("a.csv", "Größe".encode("latin-1"), kind)):
        content = written(with_entry(entry))
        assert found_in(content)[2] == "Größe".encode("latin-1")
        assert attached(content).get_content_charset() == "iso-8859-1"
        assert attached(content).get_param("header") == "present"


@pytest.mark.parametrize("name", ["none", "rot13", "ü"])
def test_a_charset_that_does_not_exist_is_refused(name: str) -> None:
    assert f"encoding: {name!r}" in refusal(mail(encoding=name))
    kind = f"text/csv; charset={name}"
    assert refusal(with_entry(("a.csv", "x", kind)))


def sealed(kind: str, inner: str) -> MIMEMultipart:
    part = MIMEMultipart(kind, protocol="application/pgp-signature")
    part.attach(MIMEText(inner, "plain", "us-ascii" if inner.isascii() else "utf-8"))
    part.attach(MIMEText("--", "pgp-signature", "us-ascii"))
    return part


def raw_8_bits(kind: str, text: str) -> MIMEMultipart:
    part = sealed(kind, "")
    leaf: Any = part.get_payload(0)
    leaf.set_payload(text.encode().decode("ascii", "surrogateescape"))
    leaf.replace_header("Content-Transfer-Encoding", "8bit")
    return part


@pytest.mark.parametrize("kind", ["signed", "encrypted"])
@pytest.mark.parametrize("text", ["Hi\n", " -- \nFrom me\n.\n", "x" * 998 + "\n"])
def test_what_is_signed_is_not_touched(kind: str, text: str) -> None:
    part = sealed(kind, text)
    expected = part.as_bytes(policy=part.policy.clone(linesep="\r\n"))
    message = with_entry(part)
    message.attach("a.txt", "x" * 2000 + "\0é", "text/plain")
    content = written(message)
    assert expected.partition(b"\r\n\r\n")[2] in content
    assert expected.partition(b"\r\n\r\n")[2] in envelope(message).seven_bit().content


@pytest.mark.parametrize("kind", ["signed", "encrypted"])
@pytest.mark.parametrize("text", ["0" * 1200 + "\n", "a\0b\n", "a\rb\n"])
def test_what_is_signed_and_cannot_travel_is_refused(kind: str, text: str) -> None:
    for part in (sealed(kind, text), sealed(kind, text)):
        assert kind in refusal(with_entry(part))
        outer = MIMEMultipart()
        outer.attach(part)
        assert kind in refusal(with_entry(outer))


def test_what_is_signed_in_8_bits_goes_to_a_relay_that_takes_them_only() -> None:
    part = raw_8_bits("signed", "Größe\n")
    made = envelope(with_entry(part))
    assert "\r\n\r\nGröße\r\n".encode() in made.content
    with pytest.raises(ValueError, match="signed"):
        made.seven_bit()


class OwnMessage(EmailMessage):
    """Builds its own MIME, as signing classes do."""

    part: MIMEMultipart

    def message(self, **_: Any) -> Any:
        made = self.part
        made["Subject"] = str(self.subject)
        made["From"] = self.from_email
        made["To"] = ", ".join(self.to)
        return made


@pytest.mark.parametrize("kind", ["signed", "encrypted"])
def test_what_an_own_message_signs_is_not_touched(kind: str) -> None:
    message = OwnMessage("größe", "", "a@b.example", ["c@d.example"])
    message.part = sealed(kind, "Hi \n")
    message.part.set_boundary("own")
    content = written(message)
    assert content.startswith(b"Subject: =?utf-8?")
    body = message.part.as_bytes(policy=policy.compat32.clone(linesep="\r\n"))
    assert content.endswith(body.partition(b"\r\n\r\n")[2])
    message.part = sealed(kind, "0" * 1200)
    assert kind in refusal(message)
