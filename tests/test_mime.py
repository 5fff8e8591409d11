"""The quick ways of rendering write the very bytes that Django's own way writes."""

from __future__ import annotations

import email
import email.policy
import re
from datetime import UTC, datetime, timedelta, timezone
from email.message import MIMEPart
from inspect import signature
from typing import Any

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.test import override_settings
from django.utils.safestring import mark_safe
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_lettermint import mime, plain_text
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.header_policy import date_text
from django_lettermint.rendering import render

DATE = "Mon, 02 Mar 2026 10:00:00 +0000"
BY_POLICY = "policy" in signature(EmailMessage.message).parameters

SCRIPTS = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp"]) | st.sampled_from(" aé日"),
    max_size=90,
)
ASCII = st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="=")
WORDS = st.text(ASCII | st.just(" "), max_size=200).map(
    lambda text: " ".join(text.split())
)
LINES = SCRIPTS | WORDS
DOMAINS = st.sampled_from(
    ["example.com", "mail.example.org", "straße.de", "例え.jp", "xn--p1ai.example"]
)
LOCALS = st.text("abc019_+-", min_size=1, max_size=50)
SPECS = st.builds("{}@{}".format, LOCALS, DOMAINS | st.just("example.com"))
NAMES = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp"], exclude_characters='"\\<>@'),
    min_size=1,
    max_size=40,
).map(str.strip)
ADDRESSES = SPECS | st.builds('"{}" <{}>'.format, NAMES, SPECS)
BODIES = st.lists(
    st.sampled_from(
        [
            "\n", "\r\n", "\r", "\n.\n", "From me\n", "x" * 78, "y" * 79 + "\n",
            "=\n", " \n", "ü" * 39 + "\n", "ü" * 40, "\x85\u2028\x0b\x0c\x1c", "日本",
        ]
    )
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    max_size=8,
).map("".join)  # fmt: skip
CHARSETS = st.sampled_from([None, None, None, "utf-8", "iso-8859-1", "koi8-r", "UTF-8"])
HEADERS = st.dictionaries(
    st.sampled_from(["X-One", "x-two", "List-Unsubscribe", "Sender", "Comments"]),
    WORDS.filter(bool),
    max_size=3,
)


def mail(**keywords: Any) -> EmailMultiAlternatives:
    subtype = keywords.pop("subtype", "plain")
    encoding = keywords.pop("encoding", None)
    headers = {"Date": DATE, "Message-ID": "<1.2.3@example.com>"}
    headers |= keywords.pop("headers", {})
    defaults = {"from_email": "shop@example.com", "to": ["ann@example.com"]}
    message = EmailMultiAlternatives(headers=headers, **defaults | keywords)
    message.content_subtype = subtype
    message.encoding = encoding
    return message


TEXTS = st.builds(
    mail,
    subject=LINES,
    body=BODIES,
    from_email=ADDRESSES,
    to=st.lists(ADDRESSES, min_size=1, max_size=8),
    cc=st.lists(ADDRESSES, max_size=3),
    reply_to=st.lists(ADDRESSES, max_size=2),
    headers=HEADERS,
    subtype=st.sampled_from(["plain", "html", "calendar"]),
    encoding=CHARSETS,
)


def attach_part(message: EmailMessage, data: bytes) -> None:
    part = MIMEPart()
    part.set_content(data, maintype="image", subtype="png", cid="<logo>")
    message.attach(part)


ATTACH = st.one_of(
    st.tuples(SCRIPTS, st.binary(max_size=500), st.just("application/pdf")),
    st.tuples(st.just("a.bin"), st.binary(max_size=200), st.none()),
    st.tuples(SCRIPTS, BODIES, st.sampled_from(["text/plain", "text/csv"])),
    st.tuples(st.none(), TEXTS, st.just("message/rfc822")),
)


@st.composite
def composed(draw: st.DrawFn) -> EmailMultiAlternatives:
    message = draw(TEXTS)
    for html in draw(st.lists(BODIES, max_size=2)):
        message.attach_alternative(html, "text/html")
    for each in draw(st.lists(ATTACH, max_size=3)):
        message.attach(*each)
    if BY_POLICY and draw(st.booleans()):
        attach_part(message, draw(st.binary(max_size=500)))
    return message


def by_django(message: EmailMessage) -> bytes | None:
    """Return what Django writes by itself, or None if it refuses to."""
    try:
        if BY_POLICY:
            content = message.message(policy=email.policy.SMTP).as_bytes()
            # It writes long ASCII words as encoded ones, which ours is careful not to.
            if b"=?" not in content.partition(b"\r\n\r\n")[0]:
                return content
            return message.message(policy=mime.CAREFUL).as_bytes()
        return bytes(message.message().as_bytes(linesep="\r\n"))  # type: ignore[call-arg]
    except Exception:  # noqa: BLE001 - whatever it refuses, it refuses
        return None


def comparable(content: bytes) -> bytes:
    """Number the boundaries, which are drawn by chance, in order of appearance."""
    found = dict.fromkeys(re.findall(rb"={15}\d+==", content))
    for number, boundary in enumerate(found):
        content = content.replace(boundary, b"boundary %d" % number)
    return content if content.endswith(b"\r\n") else content + b"\r\n"


def is_transportable(content: bytes) -> bool:
    return b"\0" not in content and max(map(len, content.split(b"\r\n"))) <= 998


def assert_same(message: EmailMessage) -> None:
    expected = by_django(message)
    if expected is None:
        with pytest.raises(LettermintInvalidMessage):
            render(message)
        return
    if not is_transportable(expected):
        # These are encoded again, which test_rendering is about.
        return
    assert comparable(render(message)) == comparable(expected)


@settings(max_examples=200)
@given(TEXTS)
@example(mail(subject="", body=""))
@example(mail(subject="x" * 66, body="."))
@example(mail(subject=" ".join(["word"] * 40), body="a\n" * 10))
@example(mail(subject="=?utf-8?q?a?=", body="ü"))
@example(mail(subject=mark_safe("<b>"), body=mark_safe("<p>\n"), subtype="html"))
@example(mail(to=[f"user{number}@example.org" for number in range(50)]))
@example(mail(reply_to=["x" * 15 + "@example.com", "y" * 28 + "@example.com"]))
@example(mail(to=["x" * 60 + "@example.example", *["ann@example.com"] * 5]))
@example(mail(to=["x" * 60 + "@" + "y" * 60 + ".example"]))
@example(mail(headers={"Reply-To": "a@example.com", "From": "b@example.com"}))
@example(mail(headers={"x-a": "1", "X-A": "2"}))
@example(mail(headers={"date": DATE}))
@example(mail(from_email=f"{'x' * 50} <a@{'y' * 60}.example>"))
def test_texts_are_rendered_as_by_django(message: EmailMessage) -> None:
    assert_same(message)


@settings(max_examples=100)
@given(composed())
def test_composed_messages_are_rendered_as_by_django(message: EmailMessage) -> None:
    assert_same(message)


@pytest.mark.parametrize("size", [0, 1, 56, 57, 58, 57 * 256 - 1, 57 * 256, 57 * 300])
def test_attachments_of_any_size_are_encoded_as_by_django(size: int) -> None:
    message = mail(body="See there.")
    message.attach("a.bin", bytes(range(256)) * (size // 256 + 1), "application/x-a")
    message.attachments[0] = message.attachments[0]._replace(
        content=(bytes(range(256)) * (size // 256 + 1))[:size]
    )
    assert_same(message)


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_the_default_charset_holds(charset: str) -> None:
    with override_settings(DEFAULT_CHARSET=charset):
        assert_same(mail(subject="für dich", body="Grüße"))


def test_plain_text_is_written_at_once() -> None:
    assert plain_text.write(mail(subject="für dich", body="Grüße")) is not None
    assert plain_text.write(mail(body="x" * 79)) is None


@pytest.mark.parametrize("local", [True, False])
def test_the_date_is_in_the_zone_that_django_would_choose(*, local: bool) -> None:
    message = mail(body="Hi")
    del message.extra_headers["Date"]
    with override_settings(
        EMAIL_USE_LOCALTIME=local, USE_TZ=True, TIME_ZONE="Asia/Kolkata"
    ):
        expected = by_django(message)
        assert expected is not None
        zones = [
            re.search(rb"Date: .* ([+-]\d{4})\r\n", content)
            for content in (expected, render(message))
        ]
    assert zones[0]
    assert zones[1]
    assert zones[0][1] == zones[1][1]


def test_equal_dates_of_two_zones_are_written_each_in_its_own() -> None:
    here = datetime(2026, 3, 2, 10, 0, 0, 1, tzinfo=UTC)
    there = here.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert [date_text(here), date_text(there)] == [
        "Mon, 02 Mar 2026 10:00:00 +0000",
        "Mon, 02 Mar 2026 15:30:00 +0530",
    ]


def test_each_message_gets_an_id_of_its_own() -> None:
    message = mail(body="Hi")
    del message.extra_headers["Message-ID"]
    found = {re.search(rb"Message-ID: <.+@.+>\r\n", render(message)) for _ in range(2)}
    assert None not in found
    assert len(found) == 2


class _OwnBuilder(EmailMultiAlternatives):
    """Looks at the parts that Django has made, as signing classes do."""

    def message(self, **keywords: Any) -> Any:
        built = super().message(**keywords)
        built["X-Octets"] = str(len(built.as_bytes()))
        return built


@pytest.mark.parametrize("attached", [True, False])
def test_own_builders_see_ordinary_parts(*, attached: bool) -> None:
    own = _OwnBuilder("Hi", "Hello", "a@example.com", ["b@example.com"])
    own.attach("a.bin", b"\xff" * 100, "application/x-a")
    message: EmailMessage = own
    if attached:
        message = mail(body="Forwarded:")
        message.attach(None, own, "message/rfc822")
    assert b"X-Octets: " in render(message)


def test_a_long_word_of_free_text_is_encoded_as_the_standard_policy_does() -> None:
    word = "t" * 120
    standard = email.policy.SMTP.fold_binary("X-Token", word)
    assert mime.FAST.fold_binary("X-Token", word) == standard
    assert b"=?utf-8?q?" in standard


def test_an_encoding_that_is_asked_for_is_kept() -> None:
    part = MIMEPart(policy=mime.FAST)
    part.set_content(b"\x00data", "application", "octet-stream", cte="quoted-printable")
    assert part["Content-Transfer-Encoding"] == "quoted-printable"
    assert part.get_payload(decode=True) == b"\x00data"


def test_a_delivery_status_is_written_block_by_block() -> None:
    octets = (
        b"Content-Type: message/delivery-status\r\n\r\n"
        b"Reporting-MTA: dns; mx.example.com\r\n\r\n"
        b"Final-Recipient: rfc822; b@example.com\r\nAction: failed\r\n"
    )
    part = email.message_from_bytes(octets, policy=email.policy.SMTP)
    assert b"".join(mime.flatten(part)) == part.as_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Number", 5),
        ("No name", "text"),
        ("Subject", "=?utf-8?q?a=0Ab?="),
    ],
)
def test_a_header_that_takes_more_is_left_to_django(name: str, value: object) -> None:
    assert plain_text._header(name, value) is None
