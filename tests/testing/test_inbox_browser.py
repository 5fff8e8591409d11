"""The inbox in a real browser: live, hostile HTML, webhooks, keyboard."""

from __future__ import annotations

import smtplib
from typing import TYPE_CHECKING

import pytest
from django.test import override_settings

from django_lettermint.message import LettermintMessage
from django_lettermint.testing.inbox import Inbox
from tests.browsing import picture, serving, use_phone
from tests.testing.inbox_client import reading
from tests.testing.receiving import SECRET
from tests.testing.records import ADA, SHOP, message

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, FrameLocator, Locator, Page

    from tests.testing.inbox_client import Reader
    from tests.testing.receiving import Receiver

pytestmark = [pytest.mark.browser, pytest.mark.external]


def mails(page: Page) -> Locator:
    return page.get_by_role("list", name="Mails, the newest first").get_by_role(
        "listitem"
    )


def open_mail(page: Page, reader: Reader, subject: str) -> FrameLocator:
    page.goto(reader.inbox.url)
    page.get_by_role("link", name=subject).click()
    return page.frame_locator("iframe")


ORDER = """<!doctype html>
<html><body style="margin:0;padding:2rem;background:#eef6f2;font-family:sans-serif">
<div style="max-width:30rem;margin:auto;padding:2rem;background:#fff;border-radius:1rem">
<h1 style="color:#0b7a5c;margin-top:0">It is on its way</h1>
<p>Hello Ada,</p>
<p>your order <b>4711</b> has left our garden. Fresh mint, two bundles.</p>
<p><a href="https://shop.example.com/orders/4711" style="display:inline-block;
padding:.7rem 1.3rem;background:#0b7a5c;color:#fff;border-radius:.5rem;
text-decoration:none">Follow it</a></p></div></body></html>"""


def order() -> LettermintMessage:
    mail = LettermintMessage(
        "Your order",
        "Hello Ada,\n\nyour order 4711 has left our garden.\n",
        f"Mint Shop <{SHOP}>",
        [f"Ada Lovelace <{ADA}>"],
        route="outgoing",
        tag="order shipped",
        metadata={"order_id": 4711},
    )
    mail.attach_alternative(ORDER, "text/html")
    mail.attach("invoice.csv", "mint,1.50\n", "text/csv")
    return mail


def send_order(reader: Reader) -> None:
    options = {
        "EMAIL_BACKEND": "django_lettermint.backend.EmailBackend",
        "ANYMAIL": reader.relay.settings(),
    }
    with override_settings(**options):
        order().send()


def test_mail_appears_live_and_shows_what_is_taken_and_what_is_refused(
    reader: Reader, page: Page, screenshots: Path
) -> None:
    page.goto(reader.inbox.url)
    page.get_by_text("No mail yet.").wait_for()
    page.evaluate("window.notReloaded = true")

    reader.deliver(message("Welcome", headers={"X-LM-Tag": "welcome"}))
    with pytest.raises(smtplib.SMTPDataError):
        reader.deliver(
            message("Your password", headers={"X-LM-Tag": "user@example.com"})
        )
    send_order(reader)

    page.get_by_role("status").filter(has_text="3 mails").wait_for()
    subjects = mails(page).get_by_role("link").locator("bdi").all_inner_texts()
    assert subjects == ["Your order", "Your password", "Welcome"]
    page.get_by_text("tag order shipped").wait_for()
    page.get_by_text("refused 550 5.6.0 The tag is invalid").wait_for()
    assert page.evaluate("window.notReloaded")
    assert page.title() == "(3) Inbox"
    picture(page, screenshots, "inbox")
    page.get_by_role("link", name="Your password").click()
    page.get_by_role("alert").get_by_text("The relay refused this.").wait_for()


def test_a_mail_shows_its_html_and_gives_its_attachment(
    reader: Reader, page: Page, screenshots: Path
) -> None:
    send_order(reader)
    frame = open_mail(page, reader, "Your order")
    frame.get_by_role("heading", name="It is on its way").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="invoice.csv").click()
    assert download.value.suggested_filename == "invoice.csv"
    assert download.value.path().read_bytes().split() == [b"mint,1.50"]
    picture(page, screenshots, "inbox-mail")


def test_a_list_follows_other_tabs(
    reader: Reader, page: Page, browser: Browser
) -> None:
    reader.deliver(message("First"))
    page.goto(reader.inbox.url)
    link = page.get_by_role("link", name="First")
    page.get_by_text("Unread.").wait_for(state="attached")
    link.focus()

    other = browser.new_page()
    other.goto(link.evaluate("link => link.href"))
    page.get_by_text("Unread.").wait_for(state="detached")
    page.wait_for_function("document.title === 'Inbox'")
    reader.deliver(message("Second"))
    page.get_by_role("link", name="Second").wait_for()
    # The focus stays where it is.
    assert "First" in page.evaluate("document.activeElement.textContent")

    other.goto(reader.inbox.url)
    other.get_by_role("button", name="Clear").click()
    page.get_by_text("No mail yet.").wait_for()
    assert mails(page).count() == 0
    assert page.get_by_role("button", name="Clear").count() == 0
    other.close()


HOSTILE = """</iframe></body></html><h1>Broken out</h1>
<meta http-equiv="refresh" content="0; url={url}/refresh">
<base href="{url}/base/">
<script>parent.document.title = "Hostile"; fetch("{url}/fetch")</script>
<img src="{url}/image.png" onerror="top.location = '{url}/onerror'">
<img src="x" onerror="fetch('{url}/onerror2')">
<link rel="stylesheet" href="{url}/style.css">
<link rel="preconnect" href="{url}">
<style>@import "{url}/import.css"; body {{ background: url({url}/background.png) }}</style>
<iframe src="{url}/frame"></iframe>
<iframe srcdoc="<script>top.location = '{url}/srcdoc'</script>"></iframe>
<object data="{url}/object"></object><embed src="{url}/embed">
<video src="{url}/video" autoplay></video>
<svg><script href="{url}/svg.js"></script><image href="{url}/svg.png"/></svg>
<form action="{url}/form" method="post"><button>Submit</button></form>
<form action="/clear" method="post" target="_top"><button>Clear all</button></form>
<a href="javascript:top.location='{url}/javascript'">Script</a>
<a href="javascript:top.location='{url}/javascript'" target="_top">Top script</a>
<a href="{url}/top" target="_top">Top</a>
<p>The end</p>
"""


def test_hostile_html_is_harmless(
    reader: Reader, receiver: Receiver, page: Page
) -> None:
    said: list[str] = []
    page.on("console", lambda event: said.append(event.text))
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    reader.deliver(message("Hostile", html=HOSTILE.format(url=receiver.url)))

    with page.expect_console_message(lambda event: "'<meta" in event.text):
        frame = open_mail(page, reader, "Hostile")
    frame.get_by_text("The end").wait_for()
    address = page.url
    for name in ("Submit", "Clear all"):
        with page.expect_console_message(lambda event: "form" in event.text):
            frame.get_by_role("button", name=name).click()
    for name in ("Script", "Top script", "Top"):
        with page.expect_console_message():
            frame.get_by_role("link", name=name, exact=True).click()

    page.get_by_role("link", name="Text").click()
    page.get_by_text("Hello Ada.").wait_for()
    assert not receiver.asked + receiver.events
    assert (page.title(), dialogs) == ("Hostile", [])
    assert len(page.context.pages) == 1
    assert page.url.startswith(address)
    assert reader.subjects == ["Hostile"]
    refused = "\n".join(said)
    for what in ("image.png", "frame", "Blocked script execution", "base-uri"):
        assert what in refused
    page.goto("about:blank")


def test_content_from_elsewhere_is_loaded_when_asked(
    reader: Reader, receiver: Receiver, page: Page
) -> None:
    url = receiver.url
    markup = f'<img src="{url}/a.png" alt="Logo"><script src="{url}/x.js"></script>'
    reader.deliver(message("Remote", html=markup))
    open_mail(page, reader, "Remote").get_by_role("img", name="Logo").wait_for()
    assert receiver.asked == []

    with page.expect_response(f"{url}/a.png"):
        page.get_by_role("link", name="Load them").click()

    page.frame_locator("iframe").get_by_role("img", name="Logo").wait_for()
    page.goto("about:blank")  # ends its connections before the server ends
    assert receiver.asked == [("a.png", None)]


def test_a_link_in_a_mail_opens_a_tab_that_knows_nothing_of_the_inbox(
    reader: Reader, receiver: Receiver, page: Page
) -> None:
    to = f'href="{receiver.url}/confirm" rel="opener" target="named"'
    reader.deliver(message("Link", html=f"<a {to}>Confirm</a>"))
    frame = open_mail(page, reader, "Link")

    with page.expect_popup() as popup:
        frame.get_by_role("link", name="Confirm").click()

    tab = popup.value
    tab.wait_for_function("document.title === 'Elsewhere'")
    assert tab.evaluate("window.opener") is None
    assert ("confirm", None) in receiver.asked
    tab.close()


def test_a_button_brings_a_bounce_into_the_project(
    reader: Reader, page: Page, tmp_path: Path, screenshots: Path
) -> None:
    relay = reader.relay
    settings = relay.settings() | {"LETTERMINT_SIGNING_SECRET": SECRET}
    with serving(tmp_path / "db.sqlite3", **settings) as site:
        hooks = f"{site}anymail/lettermint/tracking/"
        inbox = Inbox(relay, port=0, webhook_url=hooks, webhook_secret=SECRET)
        with inbox:
            page.goto(site)
            page.get_by_label("Subject").fill("Welcome")
            page.get_by_role("button", name="Send", exact=True).click()
            page.get_by_text("Waiting for webhooks").wait_for()
            page.goto(inbox.url)
            page.get_by_role("link", name="Welcome").click()

            page.get_by_role("button", name="bounced").click()

            answers = page.get_by_role("list", name="Posted so far, the newest first")
            answers.get_by_text("200", exact=True).wait_for()
            webhooks = page.get_by_role("region", name="Webhooks")
            webhooks.screenshot(path=screenshots / "inbox-webhooks.png")
            # The site finds the mail of an event by our id, not by the relay's.
            page.goto(f"{site}outbox/")
            card = page.get_by_role("article").filter(has_text="Welcome")
            card.get_by_text("bounced", exact=True).wait_for()
            card.get_by_text("No such user").wait_for()
        page.goto("about:blank")


def test_the_inbox_can_be_used_by_keyboard_alone(reader: Reader, page: Page) -> None:
    reader.deliver(message("First"), message("Second"))
    page.goto(reader.inbox.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "q"

    for key, subject in (("Down", "Second"), ("Down", "First"), ("Up", "Second")):
        page.keyboard.press(f"Arrow{key}")
        assert subject in page.evaluate("document.activeElement.textContent")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name="Second").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")

    page.get_by_role("heading", level=1, name="Inbox").wait_for()


def test_a_page_goes_on_after_a_restart(reader: Reader, page: Page) -> None:
    page.goto(reader.inbox.url)
    page.get_by_text("No mail yet.").wait_for()

    reader.inbox.close()
    reader.deliver(message("Meanwhile"))
    reader.inbox.start()

    page.get_by_role("link", name="Meanwhile").wait_for()


def test_the_inbox_works_without_scripts(reader: Reader, browser: Browser) -> None:
    reader.deliver(message("Plain"))
    page = browser.new_page(java_script_enabled=False)
    page.goto(reader.inbox.url)
    page.get_by_role("link", name="Plain").click()
    page.get_by_role("link", name="Source").click()
    page.get_by_text("Subject: Plain").wait_for()
    page.close()


def test_all_pages_fit_a_phone(page: Page) -> None:
    mail = message(
        "Subject" * 20,
        headers={"X-LM-Metadata-long": "x" * 200},
        html="<p>" + "wide" * 100,
    )
    mail.add_attachment(b"x", "text", "csv", filename="x" * 80 + ".csv")
    use_phone(page)
    with reading(f"http://127.0.0.1:1/{'x' * 100}", SECRET) as reader:
        reader.deliver(mail, to=(ADA, f"{'a' * 60}@{'b' * 60}.example.com"))
        home = reader.inbox.url.rstrip("/")
        for view in ("html", "text", "headers", "source"):
            page.goto(f"{home}{reader.newest}{view}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.goto(home)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.goto("about:blank")
