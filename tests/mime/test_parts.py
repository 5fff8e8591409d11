from __future__ import annotations

from datetime import UTC, datetime
from email.mime.text import MIMEText
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.utils.translation import gettext_lazy
from django_lettermint.addresses import Mailbox
from django_lettermint.parts import alternative, attach, line_text, overlay

from django_lettermint.exceptions import LettermintInvalidMessage


def parse(field: str, text: str) -> list[Mailbox]:
    return [Mailbox(text, text, f"parsed {text}")]


def attached(*attachment: Any) -> Any:
    message = EmailMessage()
    attach(message, attachment)
    [only] = message.attachments
    return only


def test_headers_hide_those_of_the_same_name_in_any_case() -> None:
    below = {"X-One": "below", "X-Two": "below"}
    assert overlay(below, {"x-one": "own"}, parse) == {
        "X-Two": "below",
        "x-one": "own",
    }


def test_headers_that_django_looks_up_get_its_spelling() -> None:
    own = {"TO": "a", "cc": "b", "reply-TO": "c", "from": "d", "x-y": "e"}
    assert list(overlay({}, own, parse)) == ["To", "Cc", "Reply-To", "From", "x-y"]


def test_only_address_headers_outside_of_ascii_are_parsed() -> None:
    own = {"From": "Jörg <j@example.com>", "Sender": "a@b.example", "X-Y": "Jörg"}
    assert overlay({}, own, parse) == own | {"From": "parsed Jörg <j@example.com>"}


def test_a_date_is_written_as_mail_does() -> None:
    date = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert overlay({}, {"Date": date}, parse) == {
        "Date": "Fri, 02 Jan 2026 03:04:05 +0000"
    }


@pytest.mark.parametrize("name", ["Date", "date", "Resent-Date"])
@pytest.mark.parametrize("value", ["xx", "", "2026-01-02", "1 Jan 99999999 10:00:00"])
def test_a_date_that_readers_would_not_understand_is_refused(
    name: str, value: str
) -> None:
    with pytest.raises(LettermintInvalidMessage, match=f"header '{name}': .*datetime"):
        overlay({}, {name: value}, parse)


@pytest.mark.parametrize(
    "value", ["Fri, 02 Jan 2026 03:04:05 +0000", "2 Jan 26 03:04 GMT (a comment)"]
)
def test_a_date_may_be_text(value: str) -> None:
    assert overlay({}, {"Date": value}, parse) == {"Date": value}


def test_a_message_id_outside_of_ascii_is_refused() -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"header 'message-id': .*ASCII"):
        overlay({}, {"message-id": "<é@example.com>"}, parse)


@pytest.mark.parametrize("value", [None, 1.5, True, ["a"], b"bytes", object()])
def test_header_values_that_are_no_text_are_refused(value: object) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"header 'X-Y': .* as text"):
        overlay({}, {"X-Y": value}, parse)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("Bcc", "`bcc`"),
        ("BCC", "`bcc`"),
        ("Resent-Bcc", "`bcc`"),
        ("subject", "`subject`"),
        ("Content-Type", "attach_alternative"),
        ("MIME-Version", "Django writes it"),
        ("Content-Transfer-Encoding", "Django chooses it"),
    ],
)
def test_headers_that_belong_to_others_are_refused(name: str, remedy: str) -> None:
    with pytest.raises(LettermintInvalidMessage) as caught:
        overlay({}, {name: "value"}, parse)
    assert str(caught.value).startswith(f"header {name!r} is refused: ")
    assert remedy in str(caught.value)


@pytest.mark.parametrize("text", ["a\r\nb", "a\nb", "a\rb", "\0", "\x85", "\ud800"])
def test_what_must_fit_on_one_line_has_no_controls(text: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"^subject: .* control"):
        line_text("subject", text)


def test_a_tab_is_no_line_break() -> None:
    assert line_text("subject", "a\tb") == "a\tb"


def test_an_attachment_is_taken_as_django_takes_it() -> None:
    assert attached("a.txt", b"text") == ("a.txt", "text", "text/plain")
    assert attached("a.pdf", b"%PDF", None) == ("a.pdf", b"%PDF", "application/pdf")
    assert attached(None, b"data", "x-own/y") == (None, b"data", "x-own/y")


def test_the_type_of_an_attachment_is_guessed_when_it_is_empty() -> None:
    assert attached("a.pdf", b"%PDF", "") == ("a.pdf", b"%PDF", "application/pdf")


@pytest.mark.parametrize("nothing", ["", None])
def test_an_attachment_needs_no_name_and_no_type(nothing: str | None) -> None:
    found = attached(nothing, b"data", nothing)
    assert found == (None, b"data", "application/octet-stream")


def test_lazy_names_and_contents_are_made_text() -> None:
    name, content, _ = attached(gettext_lazy("a.txt"), gettext_lazy("b"), "text/plain")
    assert type(name) is type(content) is str


def test_a_mime_part_is_attached_as_it_is() -> None:
    message = EmailMessage()
    part = MIMEText("text")
    attach(message, part)
    assert message.attachments == [part]


@pytest.mark.parametrize("name", ["a\r\nX-Evil: 1", "a\nb", "a\0b", "\u2028"])
def test_attachment_names_with_controls_are_refused(name: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"attachment's name: .*control"):
        attached(name, "text", "text/plain")


@pytest.mark.parametrize(
    "mimetype", ["text/plain\r\nX-Evil: 1", "text/plain; a=\n1", "text/\0plain"]
)
def test_mime_types_with_controls_are_refused(mimetype: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match=r"attachment's type: .*control"):
        attached("a", "text", mimetype)
    with pytest.raises(
        LettermintInvalidMessage, match=r"alternative's type: .*control"
    ):
        alternative("text", mimetype)


@pytest.mark.parametrize("mimetype", ["text", "text/", "/plain", "a b/c", "text/é"])
def test_mime_types_of_another_form_are_refused(mimetype: str) -> None:
    with pytest.raises(LettermintInvalidMessage, match="write type/subtype"):
        attached("a", "text", mimetype)


def test_an_alternative_needs_a_type() -> None:
    with pytest.raises(LettermintInvalidMessage, match="write type/subtype"):
        alternative("text", "")


def test_a_mime_type_may_have_parameters() -> None:
    mimetype = "text/calendar; method=REQUEST"
    assert alternative("text", mimetype) == ("text", mimetype)


def test_an_alternative_may_be_lazy() -> None:
    assert type(alternative(gettext_lazy("text"), "text/html").content) is str
