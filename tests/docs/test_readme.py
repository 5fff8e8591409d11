"""What the README and the quick start show works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import django
import pytest
from anymail.signals import AnymailTrackingEvent, tracking
from django.core.mail import send_mail
from django.test import override_settings

from django_lettermint.exceptions import RecipientsRefused
from tests.snippets import (
    DOCS,
    ROOT,
    Snippet,
    read,
    receivers_forgotten,
    snippet,
    where,
)

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

README = ROOT / "README.md"
QUICK_START = DOCS / "quickstart.md"
TEXT = README.read_text("utf-8")
SETTINGS = [each for each in read(README) if each.is_settings]
#: Older Djangos have no MAILERS.
USABLE = [
    each for each in SETTINGS if django.VERSION >= (6, 1) or "MAILERS" not in each.code
]


def style(settings: Snippet) -> str:
    """Return the setting that names the backend."""
    return "MAILERS" if "MAILERS" in settings.code else "EMAIL_BACKEND"


@pytest.fixture(params=USABLE, ids=style)
def configured(
    request: pytest.FixtureRequest, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Relay]:
    """A relay, reached by one of the README's settings."""
    monkeypatch.setenv("LETTERMINT_API_TOKEN", relay.token)
    named = {
        name: value for name, value in request.param.run({}).items() if name.isupper()
    }
    with override_settings(**named, **where(relay)), receivers_forgotten():
        yield relay


def test_readme_and_quick_start_show_the_same_settings_in_both_styles() -> None:
    repeated = [each.code for each in read(QUICK_START) if each.is_settings]

    assert [style(each) for each in SETTINGS] == ["MAILERS", "EMAIL_BACKEND"]
    assert repeated[: len(SETTINGS)] == [each.code for each in SETTINGS]


def test_the_quick_start_sends_and_prints_the_outcomes(
    configured: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    send_mail("Hello", "It works.", "shop@example.com", ["ada@example.com"])
    snippet(QUICK_START, "message.send()").run({})
    receivers = snippet(QUICK_START, "message_failed").run({})
    configured.refuse("nobody@example.com")
    with pytest.raises(RecipientsRefused):
        send_mail("Hi", "", "shop@example.com", ["nobody@example.com"])

    assert receivers
    plain, tagged = configured.messages
    assert plain.headers["Subject"] == "Hello"
    assert (tagged.route, tagged.tag) == ("outgoing", "order shipped")
    assert tagged.metadata["order_id"] == "4711"
    sent, failed = capsys.readouterr().out.splitlines()
    assert sent.startswith("Outcome.SENT ")
    assert failed.startswith("Hi Outcome.NOT_SENT ")


def test_the_receiver_prints_a_webhook(capsys: pytest.CaptureFixture[str]) -> None:
    event = AnymailTrackingEvent(
        event_type="bounced",
        message_id="our-id",
        recipient="ada@example.com",
        mta_response="No such user",
    )

    with receivers_forgotten():
        receivers = snippet(QUICK_START, "(tracking)").run({})
        tracking.send(sender=None, event=event, esp_name="Lettermint")

    assert receivers
    assert capsys.readouterr().out == "our-id bounced ada@example.com No such user\n"


@pytest.mark.parametrize(
    ("row", "claim"),
    [
        ("20 ms, one by one", "sends {:.0f} times as many mails a second"),
        ("20 ms, a list of 100", "a list of 100 goes out {:.0f} times as fast"),
    ],
)
def test_a_figure_is_that_of_the_performance_page(row: str, claim: str) -> None:
    table = (DOCS / "performance.md").read_text("utf-8")
    found = re.search(rf"^\| {row} \|(.*)$", table, re.MULTILINE)
    assert found
    django_backend, _, _, _, ours = map(float, found[1].split("|")[:5])

    assert claim.format(ours / django_backend) in TEXT
