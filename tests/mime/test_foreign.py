"""What others have built is sent as it is where it can travel, its header by our rules.

MIME objects as attachments, what is signed, and messages of classes with an own
`message()`.
"""

from __future__ import annotations

import email
from base64 import b64encode
from email import policy
from email.encoders import encode_base64
from email.header import Header, decode_header
from email.message import EmailMessage as MimeMessage
from email.message import Message, MIMEPart
from email.mime.base import MIMEBase
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.mime import seven_bit
from tests.hostile import leaves
from tests.preparing import envelope, parsed

from .conformance import check, check_header, check_lines
from .making import (
    BOUNCE,
    OCTET_STREAM,
    attached,
    found_in,
    octets_of,
    refusal,
    unfolded,
    with_entry,
    with_file,
    written,
)
from .readers import decoded

if TYPE_CHECKING:
    from collections.abc import Callable


# -- MIME objects ----------------------------------------------------------------------------


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
    mime = email.message_from_bytes(raw, policy=how)
    content = written(with_file("bounce.eml", mime, "message/rfc822"))
    found = octets_of(content).splitlines()
    assert [line.split() for line in found if line] == [
        line.split() for line in raw.splitlines() if line
    ]


@pytest.mark.parametrize("name", ["log.eml", None])
def test_a_mime_object_with_mail_that_cannot_travel_becomes_a_file(
    name: str | None,
) -> None:
    octets = b"Subject: log\n\n" + b"0" * 1400
    part = MIMEMessage(email.message_from_bytes(octets))
    if name:
        part.add_header("Content-Disposition", "attachment", filename=name)
    content = written(with_entry(part))
    kind, found_name, found = found_in(content)
    assert (kind, found_name) == (OCTET_STREAM, name)
    assert isinstance(found, bytes)
    assert found.split() == octets.split()
    [disposition] = attached(content).get_all("Content-Disposition", [])
    assert str(disposition).startswith("attachment")


SCAN, LATIN, UTF_8 = (
    "application/x-scan",
    "text/x; charset=latin-1",
    "text/x; charset=utf-8",
)
WIDE = ("\u0d0a\u0a0d\nb\r" * 300).encode("utf-16-le")


@pytest.mark.parametrize(
    ("kind", "given", "payload", "encoding", "found"),
    [
        (SCAN, None, b"1\n.\n2\0\r", "base64", b"1\n.\n2\0\r"),
        (SCAN, None, memoryview(b"1\n.\n2\0\r"), "base64", b"1\n.\n2\0\r"),
        (SCAN, "8bit", bytearray(b"\xe9" * 2000), "base64", b"\xe9" * 2000),
        (SCAN, None, b"", "base64", b""),
        # What is encoded already is not encoded again.
        (SCAN, "Base64", memoryview(b"AP8=\n"), "Base64", b"\0\xff"),
        (LATIN, None, b"a\n.\nb", None, b"a\r\n.\r\nb"),
        (LATIN, None, b"x" * 2000, "quoted-printable", b"x" * 2000),
        (LATIN, "7bit", b"\xe9" * 2000, "quoted-printable", b"\xe9" * 2000),
        (UTF_8, None, "Größe\r\n", "8bit", "Größe\r\n".encode()),
        (UTF_8, "7bit", "Größe\n".encode(), "8bit", "Größe\r\n".encode()),
        (UTF_8, "8bit", "Größe\n".encode(), "8bit", "Größe\r\n".encode()),
        (UTF_8, None, "ö\0\n".encode(), "quoted-printable", "ö\0\r\n".encode()),
        ("text/x; charset=cp500", None, b"\xc8\x89", "8bit", b"\xc8\x89"),
        # UTF-16 or alike, whose line ends are not those of ASCII.
        (LATIN, None, b"\0\n", "base64", b"\0\n"),
        ("text/x; charset=utf-16-le", None, WIDE, "base64", WIDE),
        (
            "text/x; charset=utf-16-le",
            "base64",
            b64encode(WIDE).decode(),
            "base64",
            WIDE,
        ),
    ],
)
def test_the_content_of_a_mime_object_arrives(
    kind: str, given: str | None, payload: Any, encoding: str | None, found: bytes
) -> None:
    part = Message()
    part["Content-Type"] = kind
    if given:
        part["Content-Transfer-Encoding"] = given
    part.set_payload(payload)
    made = envelope(with_entry(part))
    check_lines(made.content)
    assert attached(made.content)["Content-Transfer-Encoding"] == encoding
    assert found_in(made.content)[2] == found
    assert part["Content-Transfer-Encoding"] == given
    # For a relay without 8BITMIME, it is encoded once.
    seven = made.seven_bit().content
    check_lines(seven)
    assert seven.isascii()
    assert found_in(seven)[2] == found


@pytest.mark.parametrize("encoding", ["quoted-printable", "base64"])
def test_raw_octets_in_an_encoded_part_stay(encoding: str) -> None:
    raw = f"Content-Transfer-Encoding: {encoding}\n\ncafé =C3=A9\n"
    content = written(with_entry(email.message_from_bytes(raw.encode())))
    assert "\r\n\r\ncafé =C3=A9\r\n".encode() in content


@pytest.mark.parametrize("encode", [None, encode_base64])
def test_a_delivery_status_given_as_text_is_sent(encode: Any) -> None:
    part = MIMEBase("message", "delivery-status")
    part.set_payload("Reporting-MTA: dns; mail.example\n\nno colon\n")
    if encode:
        encode(part)
    content = written(with_entry(part))
    check(content)
    assert b"\r\n\r\nReporting-MTA: dns; mail.example\r\n\r\n" in content
    assert b"\r\nno colon\r\n" in content


def test_parts_of_parts_are_written_each_as_it_needs() -> None:
    part = MIMEMultipart("related")
    part.preamble = "This is a message in several parts."
    for payload in ("no header", "x" * 1200):
        part.attach(each := Message())
        each.set_payload(payload)
    content = written(with_entry(part))
    check_lines(content)
    parts: Any = attached(content).get_payload()
    found = [each.get_payload(decode=True) for each in parts]
    assert found == [b"no header", b"x" * 1200]
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


def with_field(name: str, value: Any) -> MIMEText:
    part = MIMEText("text")
    part[name] = value
    return part


def copied_field(octets: bytes) -> Any:
    """Return the object that Python makes of raw octets in a header."""
    return email.message_from_bytes(b"X-Field: " + octets + b"\n\n")["X-Field"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("größe\x0b\u2028", "größe\x0b\u2028"),
        (Header("größe", "utf-8"), "größe"),
        (copied_field("größe".encode()), "größe"),
    ],
)
def test_fields_of_a_part_that_are_not_ascii_are_encoded(value: Any, text: str) -> None:
    content = written(with_entry(with_field("Content-Description", value)))
    check(content)
    assert decoded(str(attached(content)["Content-Description"])) == text


def test_fields_of_octets_stay_as_they_are() -> None:
    part = with_field("X-Folded", "one\n two\r\n\tthree")
    part["Content-Description"] = copied_field(b"gr\xf6\xdfe")
    content = written(with_entry(part))
    found = str(attached(content)["Content-Description"])
    assert decode_header(found) == [(b"gr\xf6\xdfe", "unknown-8bit")]
    assert b"X-Folded: one\r\n two\r\n\tthree\r\n" in content


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ('attachment; size="5"; filename="größe; 7.pdf"', "größe; 7.pdf"),
        ("attachment;\r\n filename=größe.pdf", "größe.pdf"),
        ("attachment; filename*=utf-8''" + "%C3%A9" * 300, "é" * 300),
        ("attachment; filename=" + "x" * 1100, "x" * 1100),
    ],
)
def test_a_file_name_in_a_field_of_a_part_is_read_as_given(
    value: str, name: str
) -> None:
    content = written(with_entry(with_field("Content-Disposition", value)))
    check(content)
    assert attached(content).get_content_disposition() == "attachment"
    assert found_in(content)[1] == name


def test_an_invalid_disposition_is_encoded() -> None:
    content = written(with_entry(with_field("Content-Disposition", "größe")))
    check(content)
    assert decoded(str(attached(content)["Content-Disposition"])) == "größe"


def test_a_header_that_python_made_is_written_by_the_same_rules() -> None:
    inner = MimeMessage()
    inner["Subject"] = "é" * 200
    inner["To"] = '"Größe, Import and everything else (Sales)" <a@größe.example>'
    inner["Cc"] = "undisclosed"
    inner["Comments"] = "word " * 40 + "end"
    inner["X-Signature"] = "sha256=" + "ab" * 100
    inner.set_content("text")
    octets = octets_of(written(with_entry(("a.eml", inner, "message/rfc822"))))
    check_header(octets.split(b"MIME-Version")[0])
    found: Any = email.message_from_bytes(octets, policy=policy.default)
    assert found["To"].addresses[0].addr_spec == "a@xn--gre-6ka8i.example"
    for name in ("Subject", "Cc", "Comments", "X-Signature"):
        assert found[name] == inner[name]
    inner["List-Post"] = "<https://lists.example/ü>"
    text = refusal(with_entry(("a.eml", inner, "message/rfc822")))
    assert text.startswith("attachment 'a.eml': header 'List-Post': ")


@pytest.mark.parametrize(
    "value", ["a\0b", "a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\rX-Evil: 1"]
)
def test_a_field_of_a_part_that_cannot_be_written_is_refused(value: str) -> None:
    assert "'X-Long': " in refusal(with_entry(with_field("X-Long", "x" * 1100)))
    part = with_field("X-A", "a")
    part.add_header("Content-Disposition", "attachment", filename=value)
    assert "'Content-Disposition': " in refusal(with_entry(part))


@pytest.mark.parametrize("payload", [[MIMEText("in no multipart")], 5])
def test_a_payload_that_is_no_text_and_no_octets_is_refused(payload: Any) -> None:
    part = MIMEBase("application", "x-scan")
    part.set_payload(payload)
    assert "the payload of a MIME part" in refusal(with_entry(part))


# -- What is signed --------------------------------------------------------------------------


def sealed(kind: str, inner: str) -> MIMEMultipart:
    part = MIMEMultipart(kind, protocol="application/pgp-signature")
    part.attach(MIMEText(inner, "plain", "us-ascii"))
    part.attach(MIMEText("--", "pgp-signature", "us-ascii"))
    return part


@pytest.mark.parametrize("kind", ["signed", "encrypted"])
@pytest.mark.parametrize("text", ["Hi\n", " -- \nFrom me\n.\n", "x" * 998 + "\n"])
def test_what_is_signed_is_not_touched(kind: str, text: str) -> None:
    part = sealed(kind, text)
    expected = part.as_bytes(policy=part.policy.clone(linesep="\r\n"))
    message = with_entry(part)
    message.attach("a.txt", "x" * 2000 + "\0é", "text/plain")
    made = envelope(message)
    for each in (made, made.seven_bit()):
        assert expected.partition(b"\r\n\r\n")[2] in each.content


@pytest.mark.parametrize("kind", ["signed", "encrypted"])
@pytest.mark.parametrize("text", ["0" * 1200 + "\n", "a\0b\n", "a\rb\n"])
def test_what_is_signed_and_cannot_travel_is_refused(kind: str, text: str) -> None:
    outer = MIMEMultipart()
    outer.attach(sealed(kind, text))
    assert f"multipart/{kind}" in refusal(with_entry(sealed(kind, text)))
    assert f"multipart/{kind}" in refusal(with_entry(outer))


def test_what_is_signed_in_8_bits_goes_to_a_relay_that_takes_them_only() -> None:
    part = sealed("signed", "")
    leaf: Any = part.get_payload(0)
    leaf.set_payload("Größe\n".encode().decode("ascii", "surrogateescape"))
    leaf.replace_header("Content-Transfer-Encoding", "8bit")
    made = envelope(with_entry(part))
    assert "\r\n\r\nGröße\r\n".encode() in made.content
    with pytest.raises(LettermintInvalidMessage, match="signed"):
        made.seven_bit()


# -- Relays without 8BITMIME -----------------------------------------------------------------


def test_an_encoded_composite_part_keeps_its_label() -> None:
    # RFC 2045 forbids it, but without the label no reader could decode it.
    outer = (
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"U3ViamVjdDogeAoKYm9keQ==\r\n"
    )
    assert b"base64" in seven_bit(outer)


# -- Classes with an own message() -----------------------------------------------------------


class Old(EmailMultiAlternatives):
    """A subclass written before Django 6.0."""

    def message(self) -> Any:  # type: ignore[override] # as such classes are
        made = super().message()
        made["X-Own"] = "yes"
        return made


class Careful(EmailMultiAlternatives):
    """A subclass that works with the header objects of Python's newer policies."""

    def message(self, *, policy: Any = email.policy.default) -> Any:
        if django.VERSION < (6, 0):
            made: Any = super().message()
            made["X-Own"] = "yes"
        else:
            made = super().message(policy=policy)
            made["X-Own"] = "yes" if made["To"].addresses else "no"
        return made


@pytest.mark.parametrize("kind", [Old, Careful])
def test_a_class_with_an_own_message_writes_the_same_mail(kind: Any) -> None:
    message = kind(
        "größe",
        "Grüße\n",
        "Ann <a@straße.example>",
        ["nø@b.example"],
        cc=["c@d.example"],
    )
    message.alternatives = [[b"<p>Hello</p>\n", "text/html"]]
    message.attach("page.mht", b"0" * 1200, "multipart/x-mht")
    message.extra_headers = {
        "reply-to": "Ann <ann@straße.example>",
        "List-Unsubscribe": f"<https://example.com/{'u' * 200}>",
    }
    made = envelope(message)
    check_lines(made.content)
    for line in (
        "X-Own: yes",
        "From: Ann <a@xn--strae-oqa.example>",
        "To: nø@b.example",
        "Reply-To: Ann <ann@xn--strae-oqa.example>",
        f"List-Unsubscribe: <https://example.com/{'u' * 200}>",
    ):
        assert line.encode() in made.content.replace(b"\r\n ", b" ").split(b"\r\n")
    assert parsed(made.content)["Subject"] == "größe"
    texts = ["Grüße\r\n".encode(), b"<p>Hello</p>\r\n"]
    assert leaves(made.content) == [*texts, b"0" * 1200]
    assert found_in(made.content)[:2] == (OCTET_STREAM, "page.mht")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Errors-To", '"Réception, Nord" <bounce@größe.example>, Ö <ö@b.example>'),
        ("List-Id", '"Läden, Nord" <shops.lists.example>'),
        ("Message-ID", "<ticket#12;step:3@shop.example>"),
        ("References", "<a@b.example> =?utf-8?q?a?="),
        ("Comments", "=?utf-8?q?a?="),
        ("X-Note", "=?utf-8?q?a?= é"),
        ("X-Note", "a\x0bb\x85c\u2028d"),
        ("To", '"a\x0bb\x85c" <a@b.example>'),
        ("Cc", "Team: a@b.example;"),
    ],
)
def test_a_class_that_calls_djangos_message_sends_its_headers_as_others_do(
    name: str, value: str
) -> None:
    own_class, stock = (
        kind("Hello", "Text", "a@b.example", ["c@d.example"], headers={name: value})
        for kind in (Old, EmailMessage)
    )
    assert unfolded(own_class, name) == unfolded(stock, name)


@pytest.mark.parametrize(
    "text",
    [
        "=?utf-8?q?a?= b",
        "=?utf-8?q?a?=",
        " a ",
        "a\x0bb",
        "a\x85b",
        "a\u2028é",
        "a  \t b",
    ],
)
def test_a_class_that_calls_djangos_message_keeps_subject_and_names(text: str) -> None:
    address, raw = f'"{text}" <a@b.example>', f'"{text}" <nø@b.example>'
    own_class, stock = (
        kind(text, "Text", address, [address], cc=[raw, "nø@c.example"])
        for kind in (Old, EmailMessage)
    )
    for name in ("Subject", "From", "To", "Cc"):
        assert unfolded(own_class, name) == unfolded(stock, name)


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_a_class_that_calls_djangos_message_writes_addresses_in_any_charset(
    charset: str,
) -> None:
    own_class, stock = (
        kind("Hello", "Text", "Zoë <a@b.example>", ["Zoë <nø@b.example>"])
        for kind in (Old, EmailMessage)
    )
    own_class.encoding = charset
    assert unfolded(own_class, "To") == unfolded(stock, "To")


def test_a_class_that_calls_djangos_message_writes_other_text_in_utf_8() -> None:
    message = Old("Hello", "Text", "a@b.example", ["c@d.example"])
    message.attach("data.json", '{"name": "Zoë ☃"}', "application/json")
    found = found_in(written(message))
    assert found == ("application/json", "data.json", '{"name": "Zoë ☃"}'.encode())


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("attachment's name", {"attachments": [("=?utf-8?q?a?=.pdf", b"1", None)]}),
        ("encoding", {"encoding": "utf-16"}),
        ("from_email", {"from_email": 'Zoë <"a b"@c.example>'}),
        ("to", {"to": ['"a b"@c.example', "nø@c.example"]}),
        ("header 'Errors-To'", {"extra_headers": {"Errors-To": '"ø b"@c.example'}}),
    ],
)
def test_what_djangos_message_would_change_is_refused_of_a_class_that_may_call_it(
    field: str, change: dict[str, Any]
) -> None:
    message = Old("Hello", "Text", "a@b.example", ["c@d.example"])
    vars(message).update(change)
    assert refusal(message).startswith(f"{field}: ")
    stock = EmailMessage("Hello", "Text", "a@b.example", ["c@d.example"])
    vars(stock).update(change)
    check_lines(written(stock))


def returning(make: Callable[[], object]) -> EmailMessage:
    message = EmailMessage("Subject", "Hi", "shop@example.com", ["ann@example.com"])
    message.message = make  # type: ignore[method-assign, assignment] # as users do
    return message


def own(**fields: str) -> MIMEText:
    made = MIMEText("Größe", "plain", "utf-8")
    made["Subject"] = "own"
    for name, value in fields.items():
        made[name.replace("_", "-")] = value
    return made


WORD = "=?utf-8?q?gr=C3=B6=C3=9Fe?="


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("Comments", WORD, "=?utf-8?b?Z3LDtsOfZQ==?="),
        # As Python has written it, without a blank between the words.
        ("Comments", "=?utf-8?q?=C3=A9_?==?utf-8?q?=C2=BB?=", "=?utf-8?b?w6kgwrs=?="),
        ("Comments", "größe =?utf-8?q?=C3=A9?=", "=?utf-8?b?Z3LDtsOfZSDDqQ==?="),
        ("X-Word", WORD, WORD),
        ("Subject", copied_field("größe".encode()), "=?utf-8?b?Z3LDtsOfZQ==?="),
        ("X-One", copied_field("größe".encode()), "=?utf-8?b?Z3LDtsOfZQ==?="),
        ("Reply-To", "=?utf-8?b?bsO4?=@b.example", "nø@b.example"),
        (
            "Reply-To",
            "=?utf-8?q?Lee=2C_Ann?= <a@b.example>",
            '"Lee, Ann" <a@b.example>',
        ),
    ],
)
def test_what_an_own_message_has_encoded_is_written_anew(
    name: str, value: Any, line: str
) -> None:
    made = with_field(name, value)
    assert unfolded(returning(lambda: made), name) == line


@pytest.mark.parametrize("name", ["To", "X-Note"])
def test_a_header_that_an_own_message_changes_is_written_as_changed(name: str) -> None:
    message = returning(lambda: with_field(name, "changed@b.example"))
    message.extra_headers = {"X-Note": "as it was given"}
    assert unfolded(message, name) == "changed@b.example"


@pytest.mark.parametrize("how", [policy.compat32, policy.default])
def test_raw_octets_of_no_known_charset_in_an_own_message_are_refused(how: Any) -> None:
    made = email.message_from_bytes(b"Subject: gr\xf6\xdfe\n\nHi\n", policy=how)
    text = refusal(returning(lambda: made))
    assert text.startswith("header 'Subject': ")
    assert "UTF-8" in text


def test_what_an_own_message_signs_is_not_touched() -> None:
    made = sealed("signed", "Hi \n")
    made["Subject"] = "größe"
    made.set_boundary("own")
    content = written(returning(lambda: made))
    assert content.startswith(b"Subject: =?utf-8?")
    body = made.as_bytes(policy=policy.compat32.clone(linesep="\r\n"))
    assert content.endswith(body.partition(b"\r\n\r\n")[2])


def error_of(make: Callable[[], object]) -> str:
    error = EmailBackend(api_token="lm_unused").prepare(returning(make)).error
    assert isinstance(error, LettermintInvalidMessage)
    return str(error)


def test_an_own_message_that_makes_no_mail_is_refused() -> None:
    assert "not a MIME message" in error_of(lambda: "text")
    assert "division by zero (ZeroDivisionError); check" in error_of(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("X-Own", "a\r\nX-Evil: 1", "header 'X-Own': "),
        ("X-Own", "a\r\n\r\nbody", "header 'X-Own': "),
        ("X-Own", "x" * 1100, "over 998 octets"),
        ("X-Own", "a\r\n " + "x" * 1100, "over 998 octets"),
        ("X-Own", copied_field(b"gr\xf6\xdfe"), "not UTF-8"),
        *(
            (name, "value", f"header '{name}' of the class")
            for name in ("X-LM-Tag", "x-tag", "X-Metadata-k", "idempotency-key")
        ),
        # From Python 3.14 on, the message itself refuses the name.
        *((name, "a", "name") for name in ("X-A\r\nX-Evil", "X A", "X:A", "Xé")),
    ],
)
def test_a_field_of_an_own_message_that_cannot_be_sent_is_refused(
    name: str, value: Any, text: str
) -> None:
    assert text in error_of(lambda: with_field(name, value))


def test_an_own_class_encodes_no_field_that_programs_read() -> None:
    message = Old("Hello", "Text", "a@b.example", ["c@d.example"])
    message.extra_headers = {"List-Unsubscribe": "<https://shop.example/é>"}
    assert refusal(message).startswith("header 'List-Unsubscribe': ")


@pytest.mark.parametrize("name", ["Bcc", "bcc", "Resent-Bcc"])
def test_an_own_message_shows_no_blind_recipients(name: str) -> None:
    made = own(**{name: "hidden@example.com"})
    content = envelope(returning(lambda: made)).content
    assert b"hidden" not in content
    assert b"bcc:" not in content.lower()
    assert made[name] == "hidden@example.com"
