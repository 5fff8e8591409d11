"""What goes over the wire is what the message says, whatever it is made of."""

from __future__ import annotations

import email
import email.message
import re
from email.mime.application import MIMEApplication
from email.mime.base import MIMEBase
from email.mime.text import MIMEText
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.mime import seven_bit, with_crlf
from tests.hostile import HOSTILE, assert_wire_safe, leaves, lines, text_lines
from tests.preparing import envelope, header_lines, parsed

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=20), max_size=6).map(
    "".join
)
OCTETS = st.lists(
    st.sampled_from([each.encode() for each in HOSTILE]) | st.binary(max_size=20),
    max_size=6,
).map(b"".join)


def message(body: str = "Hello", **keywords: Any) -> EmailMultiAlternatives:
    keywords = {"to": ["ann@example.com"], "from_email": "shop@example.com"} | keywords
    return EmailMultiAlternatives("Subject", body, **keywords)


@settings(max_examples=50)
@given(TEXTS)
@example("\0" * 3 + "\n.\n" + "x" * 1000)
def test_a_body_arrives_line_by_line(body: str) -> None:
    content = envelope(message(body)).content
    assert_wire_safe(content)
    [payload] = leaves(content)
    assert text_lines(payload) == lines(body)


@settings(max_examples=50)
@given(TEXTS)
def test_a_body_arrives_at_a_relay_without_8bitmime(body: str) -> None:
    content = envelope(message(body)).seven_bit().content
    assert content.isascii()
    assert_wire_safe(content)
    [payload] = leaves(content)
    assert text_lines(payload) == lines(body)


@settings(max_examples=50)
@given(TEXTS, TEXTS, OCTETS)
def test_all_parts_arrive_with_8bitmime_and_without(
    plain: str, html: str, data: bytes
) -> None:
    mail = message("x" + plain)
    mail.attach_alternative("y" + html, "text/html")
    mail.attach("data.bin", data, "application/octet-stream")
    made = envelope(mail)
    for each in (made, made.seven_bit()):
        assert_wire_safe(each.content)
        first, second, third = leaves(each.content)
        assert text_lines(first) == lines("x" + plain)
        assert text_lines(second) == lines("y" + html)
        assert third == data


@settings(max_examples=50)
@given(OCTETS)
def test_an_attached_mail_makes_no_commands_of_its_own(inner: bytes) -> None:
    mail = message()
    mail.attach("mail.eml", b"Subject: inner\r\n\r\n" + inner, "message/rfc822")
    made = envelope(mail)
    for each in (made, made.seven_bit()):
        assert_wire_safe(each.content)
        bodies = leaves(each.content)
        # The parser may see a multipart in it, but never more than what was attached.
        assert bodies[0] == b"Hello\r\n" or bodies[0] == b"Hello"


def test_an_attached_django_message_arrives() -> None:
    inner = message("Größe", to=["bob@example.com"], bcc=["hidden@example.com"])
    mail = message()
    mail.attach("mail.eml", inner, "message/rfc822")
    content = envelope(mail).content
    assert b"hidden@example.com" not in content
    assert leaves(content)[1].decode().strip() == "Größe"


@given(st.binary(max_size=3000))
def test_every_line_end_becomes_crlf_and_nothing_else_changes(data: bytes) -> None:
    content = with_crlf(data)
    assert_crlf = re.sub(rb"\r\n|\r|\n", b"\n", data)
    assert content.replace(b"\r\n", b"\n").removesuffix(b"\n") == (
        assert_crlf.removesuffix(b"\n")
    )
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", content)
    assert with_crlf(content) == content


def test_short_8_bit_lines_stay_as_they_are() -> None:
    content = envelope(message("Grüße")).content
    assert "\r\n\r\nGrüße\r\n".encode() in content


def test_composite_parts_lose_their_8bit_label_with_their_8_bits() -> None:
    outer = (
        b"Content-Type: multipart/mixed; boundary=b\r\n"
        b"Content-Transfer-Encoding: 8bit\r\n\r\n"
        b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 8bit\r\n\r\n\xc3\xbc\r\n--b--\r\n"
    )
    content = seven_bit(outer)
    assert b"8bit" not in content
    assert content.isascii()
    assert leaves(content) == ["ü".encode()]


def test_an_encoded_composite_part_keeps_its_label() -> None:
    # RFC 2045 forbids it; without the label nobody could undo it.
    outer = (
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"U3ViamVjdDogeAoKYm9keQ==\r\n"
    )
    assert b"base64" in seven_bit(outer)


def test_base64_in_one_endless_line_is_wrapped() -> None:
    part = MIMEBase("application", "octet-stream")
    part.set_payload("QUJD" * 1000)
    part["Content-Transfer-Encoding"] = "base64"
    content = with_crlf(part.as_bytes())
    assert leaves(seven_bit(content)) == [b"ABC" * 1000]
    assert_wire_safe(seven_bit(content))


def test_a_body_in_a_charset_without_ascii_is_encoded() -> None:
    part = b"Content-Type: text/plain; charset=cp500\r\n\r\n" + "Hi".encode("cp500")
    assert leaves(seven_bit(part + b"\r\n")) == ["Hi".encode("cp500") + b"\r\n"]


def long_values() -> list[tuple[str, str]]:
    return [
        ("List-Unsubscribe", f"<https://example.com/{'u' * 300}>"),
        ("References", " ".join(f"<{'r' * 80}.{n}@example.com>" for n in range(8))),
        ("Message-ID", f"<{'m' * 200}@example.com>"),
    ]


@pytest.mark.parametrize(("name", "value"), long_values())
def test_long_ascii_words_of_structured_headers_stay_readable(
    name: str, value: str
) -> None:
    content = envelope(message(headers={name: value})).content
    [line] = header_lines(content, name)
    assert line.split() == f"{name}: {value}".encode().split()
    assert_wire_safe(content)


def test_a_long_address_stays_an_address() -> None:
    long = "x" * 200 + "@example.com"
    for keywords in ({"to": [long]}, {"cc": [f"Ann <{long}>"]}, {"from_email": long}):
        content = envelope(message(**keywords)).content
        assert long.encode() in content
        assert b"=?" not in content


def test_a_long_subject_is_folded() -> None:
    mail = message()
    mail.subject = "Grüße " + "word " * 60
    content = envelope(mail).content
    assert parsed(content)["Subject"].split() == mail.subject.split()
    head = content.partition(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) <= 200


def test_many_recipients_are_folded() -> None:
    to = [f"recipient-number-{n}@example.com" for n in range(100)]
    content = envelope(message(to=to)).content
    assert [each.addr_spec for each in parsed(content)["To"].addresses] == to
    assert_wire_safe(content)


def test_smtputf8_headers_hold_the_characters_themselves() -> None:
    mail = message(
        to=["Jörg <nø@example.com>", "ann@straße.de"],
        cc=["ß@example.com"],
        reply_to=["ü@example.com"],
        from_email="Shöp <sö@example.com>",
        headers={"Sender": "sö@example.com", "X-Other": "öther"},
    )
    made = envelope(mail)
    assert made.smtputf8
    text = made.content.decode()
    for name, value in {
        "From": "Shöp <sö@example.com>",
        "To": "Jörg <nø@example.com>, ann@xn--strae-oqa.de",
        "Cc": "ß@example.com",
        "Reply-To": "ü@example.com",
        "Sender": "sö@example.com",
    }.items():
        [line] = header_lines(text.encode(), name)
        assert line.decode() == f"{name}: {value}"
    assert parsed(made.content)["X-Other"] == "öther"
    assert_wire_safe(made.content)


def test_smtputf8_folds_long_lists() -> None:
    to = [f"größe-{n}-{'x' * 30}@example.com" for n in range(60)]
    content = envelope(message(to=to)).content
    assert_wire_safe(content)
    for each in to:
        assert each.encode() in content


def test_a_blind_recipient_alone_can_need_smtputf8() -> None:
    made = envelope(message(bcc=["nø@example.com"]))
    assert made.smtputf8
    assert "nø".encode() not in made.content


@pytest.mark.parametrize("name", ["From", "Reply-To", "Sender", "to"])
def test_raw_address_headers_are_encoded_by_idna_2008(name: str) -> None:
    mail = message(headers={name: "Jörg <joerg@straße.de>"})
    [line] = header_lines(envelope(mail).content, name)
    assert b"<joerg@xn--strae-oqa.de>" in line
    assert b"J=C3=B6rg" in line or b"SsO2cmc" in line


class Old(EmailMultiAlternatives):
    """A subclass written before Django 6.0."""

    def message(self) -> Any:  # type: ignore[override]
        made = super().message()
        made["X-Old"] = "yes"
        return made


def test_a_subclass_whose_message_takes_no_policy_is_rendered() -> None:
    mail = Old("Subject", "Grüße", "shop@example.com", ["ann@example.com"])
    mail.extra_headers["List-Unsubscribe"] = f"<https://example.com/{'u' * 200}>"
    content = envelope(mail).content
    assert header_lines(content, "X-Old") == [b"X-Old: yes"]
    assert b"u" * 200 in content
    assert "Grüße".encode() in content
    assert_wire_safe(content)


def test_a_subclass_whose_message_takes_no_policy_can_need_smtputf8() -> None:
    mail = Old("Subject", "Hi", "shop@example.com", ["nø@example.com"])
    [line] = header_lines(envelope(mail).content, "To")
    assert line.decode() == "To: nø@example.com"


class New(EmailMultiAlternatives):
    """A subclass that passes the policy on, by keywords alone."""

    def message(self, **keywords: Any) -> Any:
        made = super().message(**keywords)
        made["X-New"] = "yes"
        return made


def test_a_subclass_whose_message_takes_keywords_is_rendered() -> None:
    mail = New("Subject", "Hi", "shop@example.com", ["ann@example.com"])
    assert header_lines(envelope(mail).content, "X-New") == [b"X-New: yes"]


def test_a_subclass_that_takes_the_policy_gets_one_it_can_use() -> None:
    class Careful(EmailMultiAlternatives):
        def message(self, *, policy: Any = email.policy.default) -> Any:
            if django.VERSION < (6, 0):
                return super().message()
            made = super().message(policy=policy)
            made["X-To"] = made["To"].addresses[0].username
            return made

    mail = Careful("Subject", "Hi", "shop@example.com", ["ann@example.com"])
    content = envelope(mail).content
    assert b"To: ann@example.com" in content


def returning(make: Callable[[], object]) -> EmailMessage:
    mail = EmailMessage("Subject", "Hi", "shop@example.com", ["ann@example.com"])
    mail.message = make  # type: ignore[method-assign, assignment]
    return mail


def compat32_message() -> MIMEText:
    made = MIMEText("Größe", "plain", "utf-8")
    made["Subject"] = "own"
    made["To"] = "ann@example.com"
    return made


def test_a_message_that_returns_a_message_of_another_policy_is_sent() -> None:
    content = envelope(returning(compat32_message)).content
    assert parsed(content)["Subject"] == "own"
    assert leaves(content) == ["Größe".encode()]


@pytest.mark.parametrize("odd", [None, "text", b"bytes", 5, object()])
def test_a_message_that_returns_something_else_is_refused(odd: object) -> None:
    error = EmailBackend(api_token="lm_unused").prepare(returning(lambda: odd)).error
    assert isinstance(error, LettermintInvalidMessage)
    assert "not a MIME message" in str(error)


def test_what_goes_wrong_while_rendering_is_told() -> None:
    def fail() -> object:
        raise RuntimeError("no template today")

    error = EmailBackend(api_token="lm_unused").prepare(returning(fail)).error
    assert isinstance(error, LettermintInvalidMessage)
    assert "no template today (RuntimeError); check" in str(error)
    assert isinstance(error.__cause__, RuntimeError)


INJECTIONS = ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\rX-Evil: 1", "a\n", "a\r\n\r\nbody"]


@pytest.mark.parametrize("value", INJECTIONS)
def test_a_header_injected_by_an_own_message_is_refused(value: str) -> None:
    def make() -> MIMEText:
        made = compat32_message()
        made["X-Own"] = value
        return made

    with pytest.raises(LettermintInvalidMessage, match=r"header 'X-Own'.*line break"):
        envelope(returning(make))


@pytest.mark.parametrize("name", ["X-A\r\nX-Evil", "X A", "X:A", "Xé"])
def test_a_header_name_injected_by_an_own_message_is_refused(name: str) -> None:
    def make() -> MIMEText:
        made = compat32_message()
        made[name] = "value"
        return made

    # From Python 3.14 on, the message itself refuses the name.
    rule = r"header 'X.*proper name|field name contains invalid characters"
    with pytest.raises(ValueError, match=rule):
        envelope(returning(make))


def test_folded_headers_of_attached_parts_are_no_injection() -> None:
    part = MIMEApplication(b"data")
    part["X-Folded"] = "one\r\n two\n\tthree"
    mail = message()
    mail.attachments.append(part)
    assert b"two" in envelope(mail).content


@pytest.mark.parametrize("value", INJECTIONS[:3])
def test_a_header_injected_by_an_attached_part_is_refused(value: str) -> None:
    part = MIMEApplication(b"data")
    part.add_header("Content-Disposition", "attachment", filename=value)
    mail = message()
    mail.attachments.append(part)
    with pytest.raises(LettermintInvalidMessage, match="Content-Disposition"):
        envelope(mail)


@pytest.mark.parametrize("value", ["x" * 1100, "a\r\n " + "x" * 1100])
def test_a_header_that_no_line_can_hold_is_refused_by_name(value: str) -> None:
    def make() -> MIMEText:
        made = MIMEText("Hi")
        made["X-Own"] = value
        return made

    with pytest.raises(LettermintInvalidMessage, match=r"header 'X-Own': .* over 998"):
        envelope(returning(make))


@pytest.mark.parametrize("name", ["Bcc", "bcc", "Resent-Bcc"])
def test_an_own_message_shows_no_blind_recipients(name: str) -> None:
    made = compat32_message()
    made[name] = "hidden@example.com"
    content = envelope(returning(lambda: made)).content
    assert b"hidden" not in content
    assert b"\nbcc:" not in content.lower()
    assert made[name] == "hidden@example.com"


@pytest.mark.parametrize(
    "name",
    ["X-LM-Tag", "x-tag", "X-Lettermint-Route", "X-Metadata-k", "idempotency-key"],
)
def test_an_own_message_writes_no_header_of_ours(name: str) -> None:
    def make() -> MIMEText:
        made = compat32_message()
        made[name] = "value"
        return made

    with pytest.raises(
        LettermintInvalidMessage, match=rf"header '{name}' of the class"
    ):
        envelope(returning(make))


def test_an_attached_mail_keeps_its_own_headers() -> None:
    inner = compat32_message()
    inner["X-LM-Tag"] = inner["Bcc"] = "own"
    mail = message()
    mail.attachments.append(inner)
    content = envelope(mail).content
    assert b"\r\nX-LM-Tag: own\r\nBcc: own\r\n" in content.replace(b"\r\n\r\n", b"\r\n")


def test_boundaries_do_not_depend_on_the_content() -> None:
    mail = message("--" + "=" * 15)
    mail.attach("a.txt", "--===============0==\n", "text/plain")
    bodies = leaves(envelope(mail).content)
    assert bodies[1].strip() == b"--===============0=="


def test_two_renderings_share_nothing() -> None:
    mail = message()
    mail.attach("a.txt", "a", "text/plain")
    first, second = envelope(mail), envelope(mail)
    assert first.content != second.content
    assert leaves(first.content) == leaves(second.content)


@pytest.mark.parametrize("charset", ["iso-8859-1", "shift_jis"])
def test_other_charsets_arrive(charset: str) -> None:
    mail = message("日本語" if charset == "shift_jis" else "Größe")
    mail.encoding = charset
    made = envelope(mail)
    for each in (made, made.seven_bit()):
        [payload] = leaves(each.content)
        used = email.message_from_bytes(each.content).get_content_charset()
        assert used
        assert payload.decode(used).strip() == mail.body


class Own(EmailMultiAlternatives):
    """A class with a message() of its own."""

    def message(self, *arguments: Any, **keywords: Any) -> Any:
        return super().message(*arguments, **keywords)


def test_an_own_class_writes_domains_as_all_others_do() -> None:
    own = Own("Hi", "Hello", "desk@shop.example", ["ann@example.com"])
    own.extra_headers = {"reply-to": "Ann <ann@straße.example>"}
    content = envelope(own).content
    assert parsed(content)["Reply-To"] == "Ann <ann@xn--strae-oqa.example>"


def test_an_own_class_writes_alternatives_given_as_lists() -> None:
    own = Own("Hi", "Hello\n", "desk@shop.example", ["ann@example.com"])
    own.alternatives = [["<p>Hello</p>\n", "text/html"]]  # type: ignore[list-item]
    assert leaves(envelope(own).content) == [b"Hello\r\n", b"<p>Hello</p>\r\n"]
