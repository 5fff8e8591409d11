"""The example's website in a browser: mails, webhooks, the pool and the settings check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from django_lettermint.testing import Relay
from tests.browsing import picture, serving, use_phone

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.external]

SECRET = "whsec_example"


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    with Relay(other_tokens=["lm_north"]) as relay:
        yield relay


@pytest.fixture(scope="module")
def site(relay: Relay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site, which sends to the relay instead of Lettermint."""
    database = tmp_path_factory.mktemp("site") / "db.sqlite3"
    settings = relay.settings() | {
        "LETTERMINT_SIGNING_SECRET": SECRET,
        "LETTERMINT_NORTH_TOKEN": "lm_north",
    }
    with serving(database, **settings) as address:
        yield address


def send(page: Page) -> None:
    page.get_by_role("button", name="Send", exact=True).click()


def compose(page: Page, site: str, **fields: str) -> None:
    """Fill in the form and send it."""
    page.goto(site)
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    send(page)


def card(page: Page, subject: str) -> Locator:
    """Return a mail in the outbox."""
    heading = page.get_by_role("heading", name=subject)
    return page.get_by_role("article").filter(has=heading)


def post_events(relay: Relay, site: str) -> None:
    """Let the relay post the events of all mails so far."""
    for delivery in relay.webhooks.post(f"{site}anymail/lettermint/tracking/", SECRET):
        assert delivery.status == 200, delivery.error


def test_a_composed_mail_is_sent_and_its_webhook_appears(
    relay: Relay, site: str, page: Page, screenshots: Path
) -> None:
    page.goto(site)
    page.get_by_label("Subject").fill("Your order")
    page.get_by_label("HTML").fill("<p>It <b>works</b>.</p>")
    page.get_by_label("Attachment").set_input_files(
        {"name": "invoice.csv", "mimeType": "text/csv", "buffer": b"mint,1.50\n"}
    )
    page.get_by_label("Route").fill("outgoing")
    page.get_by_label("Tag").fill("order shipped")
    page.get_by_role("button", name="Add a row").click()
    metadata = {"order_id": "4711", "UserID": "Zoë", "city": "Besançon"}
    for row, (key, value) in enumerate(metadata.items()):
        page.get_by_label("Name").nth(row).fill(key)
        page.get_by_label("Value").nth(row).fill(value)
    picture(page, screenshots, "compose", full=True)
    send(page)

    mail = card(page, "Your order")
    mail.get_by_text("SENT", exact=True).wait_for()
    mail.get_by_text("Waiting for webhooks").wait_for()
    post_events(relay, site)
    mail.get_by_text("delivered", exact=True).wait_for()

    [read] = [
        each for each in relay.messages if each.headers["Subject"] == "Your order"
    ]
    assert (read.route, read.tag) == ("outgoing", "order shipped")
    assert metadata.items() <= read.metadata.items()
    [attached] = read.mime.iter_attachments()
    assert attached.get_filename() == "invoice.csv"
    assert attached.get_content().splitlines() == ["mint,1.50"]


def test_a_mail_is_sent_with_the_token_of_the_chosen_tenant(
    relay: Relay, site: str, page: Page
) -> None:
    page.goto(site)
    page.get_by_label("Tenant").select_option("North")
    page.get_by_label("Subject").fill("From north")
    send(page)
    card(page, "From north").get_by_text("SENT", exact=True).wait_for()

    assert relay.messages[-1].token == "lm_north"


def test_a_bounce_appears_at_its_mail_with_the_recipient_and_reason(
    relay: Relay, site: str, page: Page, screenshots: Path
) -> None:
    both = "ok@testing.lettermint.co, hardbounce@testing.lettermint.co"
    compose(page, site, To=both, Subject="To nobody", Tag="welcome")
    mail = card(page, "To nobody")
    mail.get_by_text("SENT", exact=True).wait_for()

    post_events(relay, site)

    bounce = mail.get_by_role("listitem").filter(has_text="bounced")
    bounce.get_by_text("hardbounce@testing.lettermint.co").wait_for()
    bounce.get_by_text("No such user").wait_for()
    mail.get_by_text("Replies of the relay").click()
    page.wait_for_function("!document.body.innerText.includes('Waiting for webhooks')")
    picture(page, screenshots, "outbox")


def test_a_field_that_breaks_a_rule_shows_it_and_has_the_focus(
    relay: Relay, site: str, page: Page
) -> None:
    before = len(relay.messages)
    page.goto(site)
    page.get_by_label("Tag").fill("user@example.com")
    page.get_by_label("Name").first.fill("a:b")
    page.get_by_label("Value").first.fill("x")
    send(page)

    page.get_by_text("tag: 'user@example.com' cannot be sent: a tag has").wait_for()
    page.get_by_text("metadata key: 'a:b' cannot be sent").wait_for()
    tag = page.get_by_label("Tag")
    assert tag.get_attribute("aria-invalid") == "true"
    assert tag.input_value() == "user@example.com"
    page.wait_for_function("document.activeElement.id === 'id_tag'")

    # A rule about the whole message.
    compose(page, site, To="nobody at all")
    page.get_by_text("to: 'nobody at all' is refused").wait_for()
    assert page.get_by_label("To").get_attribute("aria-invalid") == "true"
    assert len(relay.messages) == before


def test_a_failed_mail_shows_its_error_and_the_remedy(
    relay: Relay, site: str, page: Page, screenshots: Path
) -> None:
    post_events(relay, site)  # for the picture: no older mail waits
    with relay.outage():
        compose(page, site, Subject="In vain")

        mail = card(page, "In vain")
        mail.get_by_text("NOT SENT", exact=True).wait_for()
        assert "test_lettermint --scan-ports" in (mail.text_content() or "")
        page.get_by_role("status").filter(has_text="Not sent.").wait_for()
        picture(page, screenshots, "failure")


def test_a_hundred_mails_show_progress_and_share_the_connections(
    relay: Relay, site: str, page: Page, screenshots: Path
) -> None:
    relay.reply_delay = 0.25
    page.goto(f"{site}pool/")

    page.get_by_role("button", name="Send 100").click()

    page.get_by_text("100 of 100, 0 failed").wait_for()
    picture(page, screenshots, "pool", full=True)
    for series in ("size", "in_use", "demand", "leased"):
        drawn = page.locator(f".chart path.{series}").get_attribute("d") or ""
        assert len(set(re.findall(r"V([\d.]+)", drawn))) > 1, series
    relay.reply_delay = 0
    batch = [mail for mail in relay.messages if mail.tag == "batch"]
    assert sorted(int(mail.metadata["number"]) for mail in batch) == list(range(1, 101))
    assert relay.statistics.peak <= 11  # the pool's ten, and one that checks settings


def test_the_settings_check_shows_each_step_or_the_next_step_of_a_failure(
    relay: Relay, site: str, page: Page, screenshots: Path
) -> None:
    page.goto(f"{site}check/")
    page.get_by_role("button", name="Check the connection").click()

    for step in ("DNS", "TCP", "TLS", "EHLO", "AUTH", "NOOP"):
        page.get_by_role("rowheader", name=step).wait_for()
    page.get_by_text("The relay accepts the token.").wait_for()
    picture(page, screenshots, "check", full=True)

    with relay.outage():
        page.get_by_role("button", name="Check the connection").click()
        page.get_by_text("Next step:").wait_for()


def test_all_pages_fit_a_phone_and_name_their_controls(site: str, page: Page) -> None:
    use_phone(page)
    unnamed = """() => [...document.querySelectorAll("input, textarea")]
        .filter((field) => field.type !== "hidden" && !field.labels.length)
        .map((field) => field.name)"""
    for path in ("", "outbox/", "pool/", "check/"):
        page.goto(site + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate(unnamed) == []
        assert page.get_by_role("heading", level=1).count() == 1


def test_without_a_token_the_site_starts_a_relay_that_posts_webhooks(
    page: Page, tmp_path: Path
) -> None:
    with serving(tmp_path / "db.sqlite3", LETTERMINT_API_TOKEN="") as site:
        complains = "spamcomplaint@testing.lettermint.co"
        compose(page, site, To=complains, Subject="The whole loop")

        mail = card(page, "The whole loop")
        mail.get_by_text("delivered", exact=True).wait_for()
        mail.get_by_text("complained", exact=True).wait_for()
        with page.expect_popup() as popup:
            page.get_by_role("link", name="Inbox").click()
        popup.value.get_by_role("link", name="The whole loop").click()
        answers = popup.value.get_by_role(
            "list", name="Posted so far, the newest first"
        )
        answers.get_by_text("complained", exact=True).wait_for()
        popup.value.close()
        page.goto("about:blank")  # ends its requests before the site ends
