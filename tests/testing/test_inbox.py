"""The inbox's pages: the list, a mail, what was refused."""

from __future__ import annotations

import re
import smtplib
from typing import TYPE_CHECKING

import pytest

from django_lettermint.testing import Relay
from django_lettermint.testing.inbox import Inbox
from tests.testing.inbox_client import (
    ADA,
    SHOP,
    deliver,
    get,
    message,
    paths,
    post,
    refused,
    subjects,
)
from tests.testing.relay_client import client

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def inbox(relay: Relay) -> Iterator[Inbox]:
    with Inbox(relay, port=0) as inbox:
        yield inbox


# The list


def test_an_empty_inbox_says_how_to_send_the_first_mail(inbox: Inbox) -> None:
    page = get(inbox)

    assert page.status == 200
    assert "No mail yet." in page.text
    assert "python manage.py sendtestemail" in page.text


def test_the_newest_mail_comes_first(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, message("First"), message("Second"), message("Third"))

    assert subjects(inbox) == ["Third", "Second", "First"]


def test_mails_that_came_before_the_inbox_are_in_it(relay: Relay) -> None:
    deliver(relay, message("Early"))
    refused(relay, message("Early and wrong", headers={"X-LM-Tag": "a@b"}))

    with Inbox(relay, port=0) as inbox:
        assert subjects(inbox) == ["Early and wrong", "Early"]


def test_an_inbox_needs_no_relay_that_keeps_its_messages() -> None:
    with Relay(keep_messages=False) as relay, Inbox(relay, port=0) as inbox:
        deliver(relay, message("Kept here"))

        assert subjects(inbox) == ["Kept here"]


def test_a_row_says_what_lettermint_will_make_of_the_mail(
    relay: Relay, inbox: Inbox
) -> None:
    mail = message(
        "Your order",
        headers={"X-Lettermint-Route": "outgoing", "X-LM-Tag": "order shipped"},
    )
    mail.add_attachment(b"1", "text", "csv", filename="a.csv")
    mail.add_attachment(b"2", "text", "csv", filename="b.csv")
    deliver(relay, mail)

    row = get(inbox).text

    assert "Your order" in row
    assert f"Mint Shop <{SHOP}> → {ADA}" in row
    assert "Hello Ada." in row
    assert "route outgoing tag order shipped 2 attachments" in row


def test_a_mail_without_a_subject_can_be_opened(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, b"From: a@example.com\r\n\r\nx\r\n")

    assert subjects(inbox) == ["(no subject)"]


def test_the_preview_of_html_is_what_it_says(relay: Relay, inbox: Inbox) -> None:
    mail = message()
    mail.set_content(
        "<title>T</title><style>p {color: red}</style><p>One &amp; <b>two</b></p>"
        "<script>let a</script><style>i {</style>three",
        subtype="html",
    )
    deliver(relay, mail)

    assert "<bdi>One &amp; two three</bdi>" in get(inbox).source


def test_the_list_is_limited_and_says_so(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, *(message(f"Mail {number}") for number in range(102)))

    assert len(paths(inbox)) == 100
    assert (
        "102 mails, the newest 100 shown. Search finds the others." in get(inbox).text
    )
    assert subjects(inbox, "mail 1 ") == [
        f"Mail {number}" for number in range(101, -1, -1) if "1" in str(number)
    ]


@pytest.mark.parametrize(
    "query",
    [
        "invoice",
        "INVOICE",
        "hello invoice",
        "ada@example.com",
        "Lovelace",
        "mint shop",
        "orders-route",
        "monthly",
        "customer 4711",
        "order-key",
        "  hello  ",
    ],
)
def test_a_search_looks_at_all_that_a_mail_says(
    query: str, relay: Relay, inbox: Inbox
) -> None:
    extras = {
        "X-Lettermint-Route": "orders-route",
        "X-LM-Tag": "monthly",
        "X-LM-Metadata-customer": "4711",
        "Idempotency-Key": "order-key",
    }
    deliver(relay, message("Your Invoice", headers=extras))
    other = b"From: x@example.org\r\nSubject: Other\r\n\r\nNothing.\r\n"
    deliver(relay, other, to=("y@example.org",), sender="x@example.org")

    assert subjects(inbox, query) == ["Your Invoice"]


def test_a_search_that_finds_nothing_leads_back(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, message())

    page = get(inbox, "/?q=%22%3E%3Cscript%3E")

    assert "0 of 1 mail" in page.text
    assert "No mail has all of these words." in page.text
    assert 'value="&quot;&gt;&lt;script&gt;"' in page.source


def test_a_mail_is_unread_until_its_page_is_opened(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, message())
    assert "<title>(1) Inbox</title>" in get(inbox).source

    for _ in range(2):
        get(inbox, *paths(inbox))

    page = get(inbox)
    assert "<title>Inbox</title>" in page.source
    assert "Unread." not in page.source


def test_an_inbox_can_be_cleared(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, message())

    answer = post(inbox, "/clear")

    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert subjects(inbox) == []
    assert len(relay.messages) == 1


# A mail


def view(inbox: Inbox, name: str = "") -> str:
    """Return the one mail's page as text."""
    (path,) = paths(inbox)
    return get(inbox, path + name).text


def test_a_page_says_how_the_mail_came(relay: Relay, inbox: Inbox) -> None:
    mail = message(headers={"Cc": "bo@example.com", "Reply-To": "help@example.com"})
    deliver(relay, mail, to=(ADA, "bo@example.com"), security="starttls")

    page = view(inbox)

    (received,) = relay.messages
    for said in (
        f"From Mint Shop <{SHOP}>",
        f"To Ada Lovelace <{ADA}>",
        "Cc bo@example.com",
        "Reply-To help@example.com",
        f"Envelope sender {SHOP}",
        f"Envelope recipients {ADA}, bo@example.com",
        f"Size {len(received.content)} bytes",
        f"Connection STARTTLS, connection 1, {received.tls}",
    ):
        assert said in page


def test_a_connection_in_clear_has_no_cipher() -> None:
    with Relay(ports={"plaintext": 0}) as relay, Inbox(relay, port=0) as inbox:
        with smtplib.SMTP("127.0.0.1", relay.port("plaintext")) as connection:
            connection.login("lettermint", "lm_test_token")
            connection.send_message(message())

        assert "Connection no encryption, connection 1 What" in view(inbox)


@pytest.mark.parametrize(
    ("octets", "said"),
    [(1234, "1.2 kB"), (999_949, "999.9 kB"), (1_260_000, "1.3 MB")],
)
def test_a_size_is_rounded(octets: int, said: str, relay: Relay, inbox: Inbox) -> None:
    head = b"Subject: Size\r\n\r\n"
    lines = (b"x" * 98 + b"\r\n") * 12_700
    deliver(relay, head + lines[: octets - len(head) - 2] + b"\r\n")
    (received,) = relay.messages
    assert abs(len(received.content) - octets) < 3

    assert f"Size {said}" in view(inbox)


def test_a_page_says_what_lettermint_reads(relay: Relay, inbox: Inbox) -> None:
    extras = {
        "X-Lettermint-Route": "outgoing",
        "X-LM-Tag": "order shipped",
        "X-LM-Metadata-order_id": "4711",
        "Idempotency-Key": "key-1",
    }
    deliver(relay, message(headers=extras))

    page = view(inbox)

    assert "Route outgoing Tag order shipped Metadata order_id 4711" in page
    assert "Idempotency key key-1" in page
    assert f"Message id {relay.messages[0].id}" in page


def test_what_a_mail_does_not_say_is_none(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, message())

    page = view(inbox)

    assert "Route none: the project's default Tag none Idempotency key none" in page


def test_the_headers_are_shown_with_what_is_read_from_them(
    relay: Relay, inbox: Inbox
) -> None:
    extras = {
        "X-Lettermint-Route": "outgoing",
        "X-LM-Tag": "one",
        "X-Tag": "two",
        "X-LM-Metadata-Order": "4711",
        "X-Metadata-city": "Besançon",
        "Idempotency-Key": "key-1",
        "X-Mailer": "mine",
    }
    deliver(relay, message(headers=extras))

    page = view(inbox, "headers")

    assert "X-Lettermint-Route outgoing route outgoing" in page
    assert "X-LM-Tag one tag one" in page
    assert "X-Tag two not read: X-LM-Tag comes first" in page
    assert "X-LM-Metadata-Order 4711 metadata Order: 4711" in page
    assert "X-Metadata-city Besançon metadata city: Besançon" in page
    assert "Idempotency-Key key-1 idempotency key" in page
    assert "X-Mailer mine Content-Type" in page


def test_an_x_tag_alone_is_the_tag(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, message(headers={"X-Tag": "two"}))

    assert "X-Tag two tag two" in view(inbox, "headers")


def test_the_text_is_shown_with_its_links(relay: Relay, inbox: Inbox) -> None:
    text = "<b>Not bold</b>: http://localhost:8000/a?b=1&c=2, or (https://x.example)."
    deliver(relay, message(text=text))
    (path,) = paths(inbox)

    page = get(inbox, f"{path}text").source

    to = 'target="_blank" rel="noopener noreferrer"'
    first, second = "http://localhost:8000/a?b=1&amp;c=2", "https://x.example"
    assert (
        f'&lt;b&gt;Not bold&lt;/b&gt;: <a href="{first}" {to}>{first}</a>, '
        f'or (<a href="{second}" {to}>{second}</a>).'
    ) in page


def test_the_source_is_shown_and_can_be_saved(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, message("Grüße"))
    (path,) = paths(inbox)
    (received,) = relay.messages

    shown = get(inbox, f"{path}source")
    saved = get(inbox, f"{path}message.eml")

    assert "Subject: =?utf-8?" in shown.text
    assert saved.body == received.content
    assert saved.headers["Content-Type"] == "message/rfc822"
    assert saved.headers["Content-Disposition"].startswith("attachment")


def test_a_long_source_is_cut_and_says_so(relay: Relay, inbox: Inbox) -> None:
    deliver(relay, message(text="0123456789\n" * 60_000))
    (path,) = paths(inbox)

    page = get(inbox, f"{path}source")

    assert re.search(r"… and \d+\.\d kB more\.", page.text)
    assert len(page.body) < 550_000


@pytest.mark.parametrize(
    ("kinds", "best"),
    [
        (("plain", "html"), "HTML"),
        (("plain",), "Text"),
        (("html",), "HTML"),
        ((), "Headers"),
    ],
)
def test_a_page_begins_with_the_best_view_that_there_is(
    kinds: tuple[str, ...], best: str, relay: Relay, inbox: Inbox
) -> None:
    mail = message()
    mail.clear_content()
    for kind in kinds:
        mail.add_alternative(f"<p>{kind}</p>", subtype=kind)
    if not kinds:
        mail.add_attachment(b"", "application", "octet-stream", filename="a")
    deliver(relay, mail)
    (path,) = paths(inbox)

    page = get(inbox, path).source

    assert re.findall(r'aria-current="page">(\w+)<', page) == [best]


def test_a_view_that_a_mail_does_not_have_is_the_best_one(
    relay: Relay, inbox: Inbox
) -> None:
    deliver(relay, message())
    (path,) = paths(inbox)

    assert 'aria-current="page">Text<' in get(inbox, f"{path}html").source


# What was refused


def test_a_broken_rule_is_shown_with_its_text(relay: Relay, inbox: Inbox) -> None:
    refused(relay, message("Wrong", headers={"X-LM-Tag": "a@b"}))

    assert "refused 550 5.6.0 The tag is invalid" in get(inbox).text
    page = view(inbox)
    assert "The relay refused this. 550 5.6.0 The tag is invalid" in page
    assert "What Lettermint reads" not in page
    assert "Webhooks" not in page
    assert "X-LM-Tag a@b" in view(inbox, "headers")


def test_a_recipient_that_is_refused_is_shown(relay: Relay, inbox: Inbox) -> None:
    relay.refuse("nobody@example.com")

    refused(relay, message(), to=("nobody@example.com",))

    assert subjects(inbox) == ["A recipient was refused"]
    page = view(inbox)
    assert "nobody@example.com: 550 5.1.1 No such mailbox" in page
    assert "Source" not in page
    assert subjects(inbox, "nobody") == ["A recipient was refused"]


def test_a_refusal_without_content_has_no_empty_frame_for_it(
    relay: Relay, inbox: Inbox
) -> None:
    relay.refuse("nobody@example.com")

    refused(relay, message(), to=("nobody@example.com",))

    (path,) = paths(inbox)
    page = get(inbox, path).source
    assert 'aria-label="Content"' not in page
    assert 'aria-label="Message"' in page


def test_a_sender_that_is_refused_is_shown(relay: Relay, inbox: Inbox) -> None:
    relay.refuse("spam@example.com", verb="MAIL")

    refused(relay, message(), sender="spam@example.com")

    assert subjects(inbox) == ["A sender was refused"]
    assert "spam@example.com: 550" in view(inbox)


def test_a_login_that_is_refused_is_shown(relay: Relay, inbox: Inbox) -> None:
    with pytest.raises(smtplib.SMTPAuthenticationError):
        client(relay, token="wrong")

    assert "A login was refused" in subjects(inbox)
    assert "535 5.7.8" in get(inbox, paths(inbox)[0]).text


# Markup


HOSTILE = "\"'><script>alert(1)</script>&amp;$title${x}"


def test_nothing_that_a_mail_says_becomes_markup(relay: Relay, inbox: Inbox) -> None:
    mail = message(
        HOSTILE, HOSTILE, {"X-LM-Metadata-a": HOSTILE, "Cc": "x@example.com"}
    )
    mail.replace_header("From", f'"{HOSTILE[2:]}" <a@example.com>')
    mail.add_attachment(b"", "text", "plain", filename=HOSTILE)
    deliver(relay, mail)
    (path,) = paths(inbox)

    for page in ("/", path, f"{path}text", f"{path}headers", f"{path}source"):
        answer = get(inbox, page)
        assert "<script>" not in answer.source
        assert "alert(1)" in answer.text
    assert "&amp;amp;$title${x}" in get(inbox).source
