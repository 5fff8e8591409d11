"""The message that receivers of signals get in a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.core.mail import EmailMultiAlternatives

from django_lettermint.message import LettermintMessage
from django_lettermint.tasks.rebuild import message_from_bytes
from tests.sending import backend

if TYPE_CHECKING:
    from tests.tasks.queueing import ServedQueue


def rebuilt(text: str, *recipients: str) -> LettermintMessage:
    return message_from_bytes(text.replace("\n", "\r\n").encode(), recipients)


def test_receivers_get_the_content_of_the_message_and_can_send_it_again(
    queue: ServedQueue,
) -> None:
    message = EmailMultiAlternatives(
        "Grüße",
        "Wie geht's, Bob?\nAnn",
        '"Ännchen, B." <ann@example.org>',
        ["Bob <bob@example.org>"],
        cc=["carol@example.org"],
        bcc=["dan@example.org"],
        reply_to=["Eve <eve@example.org>"],
        headers={"X-Campaign": "frühling"},
    )
    message.attach_alternative("<p>Wie geht's?</p>", "text/html")
    message.attach("notes.txt", "not the body", "text/plain")
    queue.send(message)
    queue.run()
    [(found, _)] = queue.sent
    assert isinstance(found, LettermintMessage)
    assert found.subject == "Grüße"
    assert found.body == "Wie geht's, Bob?\nAnn"
    assert found.from_email == '"Ännchen, B." <ann@example.org>'
    assert found.to == ["bob@example.org"]
    assert found.cc == ["carol@example.org"]
    assert found.bcc == ["dan@example.org"]
    assert found.reply_to == ["eve@example.org"]
    assert found.extra_headers["X-Campaign"] == "frühling"
    assert found.extra_headers.keys() >= {"Message-ID", "Date"}
    assert not found.extra_headers.keys() & {"Subject", "From", "To", "Content-Type"}
    assert [mimetype for _, mimetype in found.alternatives] == ["text/html"]
    assert found.attachments == []
    assert found.anymail_status.status == {"queued"}
    assert backend(queue.server).send_messages([found]) == 1


def test_a_message_without_text_or_subject_has_an_empty_body() -> None:
    found = rebuilt("Content-Type: text/html\n\n<p>Hi</p>\n", "a@x.test")
    assert (found.subject, found.body, found.bcc) == ("", "", ["a@x.test"])
    assert found.alternatives[0][0] == "<p>Hi</p>\n"


@pytest.mark.parametrize("charset", ["x-klingon", "idna", "undefined", "\x00a"])
def test_a_body_in_an_unknown_charset_is_read_as_utf8(charset: str) -> None:
    found = rebuilt(f"Content-Type: text/plain; charset={charset}\n\nhé\n")
    assert found.body == "hé\n"


def test_an_attached_message_is_not_taken_for_the_body() -> None:
    found = rebuilt(
        'Content-Type: multipart/mixed; boundary="-"\n\n'
        "---\nContent-Type: message/rfc822\n\nSubject: Forwarded\n\nnot the body\n\n"
        "---\nContent-Type: text/html\n\n<p>Hi</p>\n"
        "-----\n"
    )
    assert found.body == ""
    assert [html for html, _ in found.alternatives] == ["<p>Hi</p>"]


@pytest.mark.parametrize(
    ("written", "sender"),
    [
        ("=?utf-8?q?=C3=84nnchen=2C_B=2E?= <a@x.test>", '"Ännchen, B." <a@x.test>'),
        ('"B., Ann" <ann@x.test>', '"B., Ann" <ann@x.test>'),
        ("ann@x.test", "ann@x.test"),
        ("=?utf-8?q?=C3=84nnchen?=", "Ännchen"),
    ],
)
def test_the_sender_keeps_its_name(written: str, sender: str) -> None:
    assert rebuilt(f"From: {written}\n\n").from_email == sender


@pytest.mark.parametrize(
    ("written", "subject"),
    [
        ("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        ("Grüße,\n\tBob\x07", "Grüße, Bob "),
        ("=?x-klingon?q?hi?=", "=?x-klingon?q?hi?="),
    ],
)
def test_a_subject_is_decoded_and_made_printable(written: str, subject: str) -> None:
    assert rebuilt(f"Subject: {written}\n\n").subject == subject


def test_headers_that_we_would_not_write_do_not_stop_a_signal() -> None:
    found = rebuilt("Subject: Hi\nX-LM-Metadata-: x\n\nHi\n")
    assert found.subject == "Hi"
    assert found.extra_headers == {"X-LM-Metadata-": "x"}
