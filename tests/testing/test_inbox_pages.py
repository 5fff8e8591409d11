"""The inbox's pages of the list and of a mail, made from records."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.testing import WebhookDelivery, make_event
from django_lettermint.testing.inbox import pages
from django_lettermint.testing.inbox.events import next_step
from django_lettermint.testing.inbox.mailbox import Mail
from tests.testing.inbox_client import text_of
from tests.testing.records import ADA, SHOP, message, received, refused

if TYPE_CHECKING:
    from django_lettermint.testing import ReceivedMessage, Refusal

EXTRAS = {
    "X-Lettermint-Route": "outgoing",
    "X-LM-Tag": "order shipped",
    "X-LM-Metadata-Order": "4711",
    "Idempotency-Key": "key-1",
}
HOOK = "http://127.0.0.1:8000/"


def list_of(*records: ReceivedMessage | Refusal, query: str = "") -> str:
    return pages.mail_list(map(Mail, records), query=query, version="1")


def page(record: ReceivedMessage | Refusal, view: str = "", **others: Any) -> str:
    fields = {"remote": False, "deliveries": (), "webhook_url": None, **others}
    return pages.mail_page(Mail(record), view=view, **fields)


def assert_said(source: str, *said: str) -> None:
    """Check that a page says all of this."""
    text = text_of(source)
    missing = [each for each in said if each not in text]
    assert not missing, (missing, text)


# The list


def test_an_empty_list_says_how_to_send_the_first_mail() -> None:
    assert_said(list_of(), "No mail yet.", "python manage.py sendtestemail")


def test_a_row_has_what_lettermint_reads_in_the_mail() -> None:
    mail = message("Your order", headers=EXTRAS)
    for name in ("a.csv", "b.csv"):
        mail.add_attachment(b"1", "text", "csv", filename=name)
    assert_said(
        list_of(received(mail)),
        "Your order",
        f"Mint Shop <{SHOP}> → {ADA}",
        "Hello Ada.",
        "route outgoing tag order shipped 2 attachments",
    )


def test_the_preview_of_html_is_its_text() -> None:
    record = received(message(text="", html="<p>One &amp; <b>two</b></p>"))
    assert "<bdi>One &amp; two</bdi>" in list_of(record)


def test_a_long_list_is_limited_but_its_search_is_not() -> None:
    records = [received(f"Subject: Mail {n}\r\n\r\n".encode()) for n in range(102)]
    limited = list_of(*records)
    assert limited.count('href="/mail/') == 100
    assert_said(limited, "102 mails, the newest 100 shown. Search finds the others.")
    assert_said(list_of(*records, query="mail 101"), "1 of 102 mails", "Mail 101")
    nothing = list_of(*records, query='"><script>')
    assert_said(nothing, "0 of 102 mails", "No mail has all of these words.")
    assert 'value="&quot;&gt;&lt;script&gt;"' in nothing


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("HI", True),
        ("hello hi", True),
        ("hello other", False),
        (ADA, True),
        ("Lovelace", True),
        ("shipped", True),
        ("order 4711", True),
        ("key-1", True),
    ],
)
def test_a_search_looks_for_words_in_a_whole_mail(query: str, *, found: bool) -> None:
    assert Mail(received(message(headers=EXTRAS))).matches(query) is found


# A mail


def test_a_page_says_how_the_mail_came() -> None:
    mail = message(headers={"Cc": "bo@example.com", "Reply-To": "help@example.com"})
    record = received(mail, recipients=(ADA, "bo@example.com"), security="starttls")
    assert_said(
        page(record),
        f"From Mint Shop <{SHOP}>",
        f"To Ada Lovelace <{ADA}>",
        "Cc bo@example.com",
        "Reply-To help@example.com",
        f"Envelope sender {SHOP}",
        f"Envelope recipients {ADA}, bo@example.com",
        f"Size {len(record.content)} bytes",
        "Connection STARTTLS, connection 1, TLSv1.3 CIPHER",
    )
    bounce = received(mail_from="", security="plaintext", tls="")
    assert_said(page(bounce), "Envelope sender <>", "no encryption, connection 1 What")


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (999, "999 bytes"),
        (999_949, "999.9 kB"),
        (1_000_000, "1.0 MB"),
        (1_260_000, "1.3 MB"),
    ],
)
def test_a_size_is_rounded(octets: int, said: str) -> None:
    assert_said(page(received(b"\r\n".ljust(octets))), f"Size {said}")


def test_a_page_says_what_lettermint_reads() -> None:
    record = received(message(headers=EXTRAS))
    assert_said(
        page(record),
        "Route outgoing Tag order shipped Metadata Order 4711",
        f"Idempotency key key-1 Message id {record.id}",
    )
    nothing = "Route none: the project's default Tag none Idempotency key none"
    assert_said(page(received()), nothing)


def test_the_headers_are_shown_with_what_is_read_from_them() -> None:
    others = {"X-Tag": "two", "X-Metadata-city": "Besançon", "X-Mailer": "mine"}
    assert_said(
        page(received(message(headers=EXTRAS | others)), "headers"),
        "X-Lettermint-Route outgoing route outgoing",
        "X-LM-Tag order shipped tag order shipped",
        "X-Tag two not read: X-LM-Tag comes first",
        "X-LM-Metadata-Order 4711 metadata Order: 4711",
        "X-Metadata-city Besançon metadata city: Besançon",
        "Idempotency-Key key-1 idempotency key",
        "X-Mailer mine Content-Type",
    )
    alone = received(message(headers={"X-Tag": "two"}))
    assert_said(page(alone, "headers"), "X-Tag two tag two")


def test_the_text_is_shown_with_its_links() -> None:
    text = "<b>Not bold</b>: http://localhost:8000/a?b=1&c=2, or (https://x.example)."
    to = 'target="_blank" rel="noopener noreferrer"'
    first, second = "http://localhost:8000/a?b=1&amp;c=2", "https://x.example"
    assert (
        f'&lt;b&gt;Not bold&lt;/b&gt;: <a href="{first}" {to}>{first}</a>, '
        f'or (<a href="{second}" {to}>{second}</a>).'
    ) in page(received(message(text=text)), "text")


def test_a_long_source_is_cut_and_says_so() -> None:
    source = page(received(b"\r\n".ljust(600_000, b"x")), "source")
    assert_said(source, "… and 100.0 kB more.")
    assert len(source) < 550_000
    assert "more." not in page(received(), "source")


@pytest.mark.parametrize(
    ("view", "text", "html", "shown"),
    [
        ("", "plain", "<p>html", "HTML"),
        ("", "plain", "", "Text"),
        ("", "", "<p>html", "HTML"),
        ("", "", "", "Headers"),
        ("text", "plain", "<p>html", "Text"),
    ],
)
def test_a_page_begins_with_the_best_view_that_there_is(
    view: str, text: str, html: str, shown: str
) -> None:
    mail = message(text=text, html=html)
    if not (text or html):
        mail.add_attachment(b"", "application", "octet-stream", filename="a")
    source = page(received(mail), view)
    assert re.findall(r'aria-current="page">(\w+)<', source) == [shown]


def test_remote_content_is_offered_until_it_is_shown() -> None:
    record = received(message(html='<img src="https://x.example/a.png">'))
    before, after = page(record), page(record, "html", remote=True)
    assert_said(before, "are not loaded. Load them")
    assert 'href="html?remote=1#view"' in before
    assert 'src="document"' in before
    assert "are not loaded" not in after
    assert 'src="document?remote=1"' in after


@pytest.mark.parametrize(
    ("command", "address", "content", "subject"),
    [
        ("AUTH", "", b"", "A login was refused"),
        ("MAIL", "spam@example.com", b"", "A sender was refused"),
        ("RCPT", "nobody@example.com", b"", "A recipient was refused"),
        ("DATA", "", b"X-LM-Tag: a@b\r\n\r\n", "(no subject)"),
    ],
)
def test_a_refusal_is_shown_with_its_reply_and_what_came(
    command: str, address: str, content: bytes, subject: str
) -> None:
    record = refused(command, address, content=content)
    reply = "550 5.6.0 The tag is invalid"
    reply = f"{address}: {reply}" if address else reply
    assert_said(list_of(record, query=reply), subject, f"refused {reply}")
    source = page(record, "headers")
    assert_said(source, f"The relay refused this. {reply}")
    assert ("X-LM-Tag a@b" in text_of(source)) is bool(content)
    assert ('aria-label="Content"' in source) is bool(content)
    assert ("Envelope sender" in source) is bool(content)
    assert "What Lettermint reads" not in source
    assert "Webhooks" not in source


# Webhooks


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (200, ""),
        (302, "The URL redirects"),
        (400, "LETTERMINT_SIGNING_SECRET"),
        (403, "LETTERMINT_SIGNING_SECRET"),
        (404, 'include("django_lettermint.urls")'),
        (405, "…/lettermint/tracking/"),
        (418, "look at --webhook"),
        (500, "its console shows the traceback"),
        (503, "post it again in a moment"),
        (None, "Connection refused. Is the project running?"),
    ],
)
def test_an_answer_is_shown_with_the_next_step(status: int | None, advice: str) -> None:
    record = received()
    created, bounced = (
        WebhookDelivery(
            url=HOOK,
            event=make_event(record, event),
            attempt=1,
            status=status,
            error="Connection refused",
        )
        for event in ("message.created", "message.hard_bounced")
    )
    assert bool(next_step(created)) is bool(advice)
    shown = text_of(page(record, deliveries=[created, bounced]))
    newest, _, older = shown.partition("message.created")
    answer = str(status or "no answer")
    assert f"bounced {ADA} {answer}" in newest
    assert advice in newest
    assert answer in older


# Markup


HOSTILE = "\"'><script>alert(1)</script>&amp;$title${x}"


def test_nothing_that_a_mail_says_becomes_markup() -> None:
    mail = message(
        HOSTILE, HOSTILE, {"X-LM-Metadata-a": HOSTILE, "Cc": "x@example.com"}
    )
    mail.replace_header("From", f'"{HOSTILE[2:]}" <a@example.com>')
    mail.add_attachment(b"", "text", "plain", filename=HOSTILE)
    record = received(mail)
    views = [page(record, view) for view in ("", "text", "headers", "source")]
    for source in (list_of(record), *views):
        assert "<script>" not in source
        assert_said(source, "alert(1)")
    assert "&amp;amp;$title${x}" in list_of(record)


def test_every_page_names_its_controls_and_its_parts() -> None:
    record = received(recipients=(ADA, "bo@example.com"))
    hooks = page(record, webhook_url=HOOK)
    assert "<option>bo@example.com</option>" in hooks
    for source in (list_of(record), page(record), hooks):
        assert '<html lang="en">' in source
        assert source.count("<h1>") == 1
        assert source.count("<main ") == source.count("<header>") == 1
        fields = re.findall(r'<(?:input|select)[^>]* id="(\w+)"', source)
        assert fields == re.findall(r'<label[^>]* for="(\w+)"', source)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', source)
