"""The buttons of a mail's page, which post webhooks to the project."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from lettermint import Webhook

from django_lettermint.testing.inbox import Inbox
from tests.testing.inbox_client import (
    ADA,
    deliver,
    get,
    message,
    paths,
    post,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_lettermint.testing import Relay
    from tests.testing.inbox_client import Answer

SECRET = "whsec_inbox"


@dataclass
class Project:
    """A web server in the place of the project."""

    url: str = ""
    status: int = 200
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@pytest.fixture
def project() -> Iterator[Project]:
    project = Project()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            project.requests.append((dict(self.headers), body))
            self.send_response(project.status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        project.url = f"http://127.0.0.1:{server.server_port}/hooks/"
        yield project
        server.shutdown()
        thread.join()


@contextmanager
def posting(relay: Relay, url: str) -> Iterator[Inbox]:
    with Inbox(relay, port=0, webhook_url=url, webhook_secret=SECRET) as inbox:
        yield inbox


def press(inbox: Inbox, event: str, recipient: str = ADA) -> Answer:
    """Press a button on the newest mail's page, and return that page."""
    path, *_ = paths(inbox)
    answer = post(inbox, f"{path}events", event=event, recipient=recipient)
    assert (answer.status, answer.headers["Location"]) == (303, f"{path}#webhooks")
    return get(inbox, path)


@pytest.mark.parametrize(
    ("button", "event"),
    [
        ("delivered", "message.delivered"),
        ("bounced", "message.hard_bounced"),
        ("deferred", "message.soft_bounced"),
        ("complained", "message.spam_complaint"),
        ("opened", "message.opened"),
        ("clicked", "message.clicked"),
        ("unsubscribed", "message.unsubscribed"),
    ],
)
def test_a_button_posts_its_event_signed(
    button: str, event: str, relay: Relay, project: Project
) -> None:
    with posting(relay, project.url) as inbox:
        deliver(relay, message(headers={"X-LM-Tag": "welcome"}))
        assert f'value="{button}"' in get(inbox, *paths(inbox)).source

        page = press(inbox, button)

    ((headers, body),) = project.requests
    payload = Webhook(SECRET).verify(body, headers)
    assert payload["event"] == event
    assert payload["data"]["message_id"] == relay.messages[0].id
    assert payload["data"]["recipient"] == ADA
    assert payload["data"]["tag"] == "welcome"
    assert f"{button} {ADA} 200" in page.text


def test_an_event_is_about_the_recipient_that_was_chosen(
    relay: Relay, project: Project
) -> None:
    with posting(relay, project.url) as inbox:
        deliver(relay, message(), to=(ADA, "bo@example.com"))
        assert "<option>bo@example.com</option>" in get(inbox, *paths(inbox)).source

        press(inbox, "bounced", "bo@example.com")
        page = press(inbox, "bounced", ADA)

    first, second = project.events()
    assert first["data"]["recipient"] == "bo@example.com"
    assert second["data"]["recipient"] == ADA
    assert first["id"] != second["id"]
    assert f"bounced {ADA} 200 bounced bo@example.com 200" in page.text


@pytest.mark.parametrize(
    ("html", "text", "url"),
    [
        (
            '<a href="https://x.example/?a=1">x</a>',
            "http://y.example/",
            "https://x.example/?a=1",
        ),
        (
            "<a href='mailto:x@example.com'>x</a>",
            "See http://y.example/.",
            "http://y.example/.",
        ),
        ("", "No link.", "https://example.com/"),
    ],
)
def test_a_click_is_on_the_first_link_of_the_mail(
    html: str, text: str, url: str, relay: Relay, project: Project
) -> None:
    mail = message(text=text)
    if html:
        mail.add_alternative(html, subtype="html")
    with posting(relay, project.url) as inbox:
        deliver(relay, mail)

        press(inbox, "clicked")

    (event,) = project.events()
    assert event["data"]["destination_url"] == url


def test_a_click_on_a_mail_without_text_is_on_some_link(
    relay: Relay, project: Project
) -> None:
    with posting(relay, project.url) as inbox:
        deliver(relay, b"Content-Type: image/png\r\n\r\nx\r\n")

        press(inbox, "clicked")

    (event,) = project.events()
    assert event["data"]["destination_url"] == "https://example.com/"


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (302, "The URL redirects"),
        (400, "LETTERMINT_SIGNING_SECRET"),
        (403, "LETTERMINT_SIGNING_SECRET"),
        (404, 'include("django_lettermint.urls")'),
        (405, "…/lettermint/tracking/"),
        (418, "look at --webhook"),
        (500, "its console shows the traceback"),
        (503, "post it again in a moment"),
    ],
)
def test_an_answer_that_is_no_success_comes_with_the_next_step(
    status: int, advice: str, relay: Relay, project: Project
) -> None:
    project.status = status
    with posting(relay, project.url) as inbox:
        deliver(relay, message())

        page = press(inbox, "opened")

    assert f"opened {ADA} {status}" in page.text
    assert advice in page.text


def test_a_project_that_does_not_run_is_told_with_the_next_step(relay: Relay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with posting(relay, f"http://127.0.0.1:{port}/") as inbox:
        deliver(relay, message())

        page = press(inbox, "delivered")

    assert f"delivered {ADA} no answer" in page.text
    assert "Connection refused. Is the project running?" in page.text
    assert "urlopen" not in page.text
    assert "python manage.py runserver" in page.text


def test_events_that_the_relay_posts_by_itself_are_shown(
    relay: Relay, project: Project
) -> None:
    relay.webhooks.subscribe(project.url, SECRET)
    with Inbox(relay, port=0) as inbox:
        deliver(relay, message(), message())
        relay.webhooks.wait_for(6)

        page = get(inbox, paths(inbox)[0])

    assert (
        f"delivered {ADA} 200 message.sent {ADA} 200 message.created 200" in page.text
    )
    assert page.text.count("delivered") == 2  # the other one is in the hint


def test_an_inbox_that_knows_no_url_says_how_to_give_it(relay: Relay) -> None:
    with Inbox(relay, port=0) as inbox:
        deliver(relay, message())
        (path,) = paths(inbox)

        page = get(inbox, path)
        answer = post(inbox, f"{path}events", event="bounced", recipient=ADA)

    assert "Start the relay with --webhook URL --secret SECRET" in page.text
    assert "<button" not in page.source
    assert answer.status == 409
    assert "--webhook URL" in answer.text
    assert relay.webhooks.deliveries == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"event": "bounced"},
        {"recipient": ADA},
        {"event": "exploded", "recipient": ADA},
        {"event": "message.opened", "recipient": ADA},
        {"event": "bounced", "recipient": "eve@example.com"},
    ],
    ids=str,
)
def test_an_event_that_no_button_posts_is_refused(
    fields: dict[str, str], relay: Relay, project: Project
) -> None:
    with posting(relay, project.url) as inbox:
        deliver(relay, message())

        answer = post(inbox, f"{paths(inbox)[0]}events", **fields)

    assert answer.status == 400
    assert project.requests == []


def test_a_mail_that_was_refused_has_no_events(relay: Relay, project: Project) -> None:
    with posting(relay, project.url) as inbox:
        refused(relay, message(headers={"X-LM-Tag": "a@b"}))
        (path,) = paths(inbox)

        answer = post(inbox, f"{path}events", event="bounced", recipient=ADA)

        assert "bounced" not in get(inbox, path).text
    assert answer.status == 400
    assert project.requests == []


def test_the_secret_is_on_no_page(relay: Relay, project: Project) -> None:
    with posting(relay, project.url) as inbox:
        deliver(relay, message())
        page = press(inbox, "delivered")
        (path,) = paths(inbox)
        views = [get(inbox, f"{path}{view}") for view in ("text", "headers", "source")]

        for each in (get(inbox), page, *views):
            assert SECRET not in each.source
            assert relay.token not in each.source
