"""Who may ask the inbox for what, and how it begins and ends."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import threading
import urllib.parse
from typing import TYPE_CHECKING

import pytest

from django_lettermint.testing.inbox import Inbox
from tests.testing.inbox_client import (
    connected,
    deliver,
    get,
    message,
    paths,
    post,
    request,
    subjects,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_lettermint.testing import Relay


@pytest.fixture
def inbox(relay: Relay) -> Iterator[Inbox]:
    with Inbox(relay, port=0) as inbox:
        deliver(relay, message())
        yield inbox


def port(inbox: Inbox) -> int:
    return urllib.parse.urlsplit(inbox.url).port or 0


# Guards


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:{}", "localhost:{}", "LocalHost:{}", "localhost:9025", "localhost"],
)
def test_the_inbox_answers_to_the_names_of_this_machine(
    host: str, inbox: Inbox
) -> None:
    assert get(inbox, "/", Host=host.format(port(inbox))).status == 200


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:{}",
        "localhost.evil.example:{}",
        "127.0.0.1.evil.example",
        "evil@127.0.0.1:{}",
        "127.0.0.1:{}:1",
        "127.0.0.1:x",
        "0.0.0.0:{}",
        "localhost, evil.example",
    ],
)
def test_a_name_that_is_not_of_this_machine_gets_nothing(
    host: str | None, inbox: Inbox
) -> None:
    for path in ("/", "/live", "/style.css", "/none"):
        answer = get(inbox, path, Host=host and host.format(port(inbox)))

        assert answer.status == 403
        assert f"open {inbox.url}" in answer.text
        assert "mail/" not in answer.source


def test_a_request_with_two_hosts_gets_nothing(inbox: Inbox) -> None:
    with socket.create_connection(("127.0.0.1", port(inbox)), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.0 403 ")


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "",
        "null",
        "http://evil.example",
        "https://127.0.0.1:{}",
        "http://127.0.0.1:8000",
        "http://localhost:{}",
        "http://127.0.0.1",
    ],
)
def test_a_form_on_another_site_changes_nothing(
    origin: str | None, relay: Relay, inbox: Inbox
) -> None:
    sent = {"Origin": origin and origin.format(port(inbox))}
    for path in ("/clear", f"/mail/{relay.messages[0].id}/events"):
        answer = request(inbox, "POST", path, sent, body="event=bounced")

        assert answer.status == 403
        assert "Forms are taken from the inbox's own pages only" in answer.text
    assert subjects(inbox) == ["Hi"]
    assert relay.webhooks.deliveries == []


def test_a_form_with_a_foreign_host_changes_nothing(inbox: Inbox) -> None:
    foreign = {"Host": "evil.example", "Origin": "http://evil.example"}

    answer = request(inbox, "POST", "/clear", foreign)

    assert answer.status == 403
    assert subjects(inbox) == ["Hi"]


@pytest.mark.parametrize("length", ["65537", "999999999", "9999999999", "-1", "x", ""])
def test_a_body_that_no_form_has_is_refused(length: str, inbox: Inbox) -> None:
    answer = request(inbox, "POST", "/clear", {"Content-Length": length})

    assert answer.status == 413
    assert subjects(inbox) == ["Hi"]


def test_no_answer_opens_anything_to_other_sites(relay: Relay, inbox: Inbox) -> None:
    mail = f"/mail/{relay.messages[0].id}/"
    answers = [
        get(inbox, path, Origin="http://evil.example")
        for path in (
            "/",
            "/style.css",
            "/none",
            mail,
            f"{mail}document",
            f"{mail}message.eml",
        )
    ]

    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in answer.headers
    for answer in answers[:4]:
        policy = answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy


def test_the_server_does_not_tell_its_version(inbox: Inbox) -> None:
    assert get(inbox).headers["Server"].strip() == "LettermintInbox"


def test_only_this_machine_can_connect(inbox: Inbox) -> None:
    assert inbox.url == f"http://127.0.0.1:{port(inbox)}/"
    other = socket.create_server(
        ("127.0.0.2", port(inbox))
    )  # free: it is another address
    other.close()


# Addresses


@pytest.mark.parametrize(
    "path",
    [
        "/none",
        "/mail/",
        "/mail/../style.css",
        "/style.css/",
        "/static/style.css",
        "/templates/page.html",
        "/%2e%2e/server.py",
        "*",
    ],
)
def test_an_address_that_does_not_exist_is_not_found(path: str, inbox: Inbox) -> None:
    assert get(inbox, path).status == 404


@pytest.mark.parametrize(
    "path", ["", "text", "document", "message.eml", "attachments/0", "events"]
)
def test_a_mail_that_is_gone_is_not_found(
    path: str, relay: Relay, inbox: Inbox
) -> None:
    mail = f"/mail/{relay.messages[0].id}/"
    post(inbox, "/clear")

    answer = post(inbox, mail + path) if path == "events" else get(inbox, mail + path)

    assert answer.status == 404
    assert "the inbox keeps the newest ones only" in answer.text


@pytest.mark.parametrize(("method", "path"), [("GET", "/clear"), ("POST", "/")])
def test_a_method_that_is_not_for_a_page_is_refused(
    method: str, path: str, inbox: Inbox
) -> None:
    answer = request(inbox, method, path)

    assert answer.status == 405
    assert subjects(inbox) == ["Hi"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("style.css", "text/css"),
        ("inbox.js", "text/javascript"),
        ("icon.svg", "image/svg"),
    ],
)
def test_what_a_page_needs_is_served_by_the_inbox(
    name: str, kind: str, inbox: Inbox
) -> None:
    answer = get(inbox, f"/{name}")

    assert answer.headers["Content-Type"].startswith(kind)
    assert answer.body


def test_every_page_names_its_controls_and_its_parts(inbox: Inbox) -> None:
    for path in ("/", *paths(inbox)):
        page = get(inbox, path).source
        assert '<html lang="en">' in page
        assert page.count("<h1>") == 1
        assert page.count("<main ") == page.count("<header>") == 1
        fields = re.findall(r'<(?:input|select)[^>]* id="(\w+)"', page)
        assert fields == re.findall(r'<label[^>]* for="(\w+)"', page)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


# Live


def follow(connection: http.client.HTTPConnection) -> Iterator[str]:
    """Yield the versions that the inbox tells."""
    connection.request("GET", "/live")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == "text/event-stream"
    for line in answer:
        if line.startswith(b"data: "):
            yield line.removeprefix(b"data: ").strip().decode()


def test_a_stream_tells_each_change(relay: Relay, inbox: Inbox) -> None:
    with connected(inbox) as connection:
        versions = follow(connection)
        first = next(versions)
        assert f'data-version="{first}"' in get(inbox).source

        deliver(relay, message("Another"))
        second = next(versions)
        post(inbox, "/clear")
        third = next(versions)

    assert len({first, second, third}) == 3


def test_closing_ends_the_streams_and_all_threads(relay: Relay) -> None:
    before = set(threading.enumerate())
    inbox = Inbox(relay, port=0)
    inbox.start()
    with connected(inbox) as one, connected(inbox) as two, connected(inbox) as silent:
        silent.connect()
        streams = [follow(one), follow(two)]
        for versions in streams:
            next(versions)

        inbox.close()

        for versions in streams:
            assert list(versions) == []
    assert set(threading.enumerate()) <= before


def test_a_reader_who_leaves_does_no_harm(relay: Relay, inbox: Inbox) -> None:
    with connected(inbox) as connection:
        next(follow(connection))

    for number in range(3):
        deliver(relay, message(f"Mail {number}"))

    assert len(paths(inbox)) == 4


# Life


def test_an_inbox_can_be_closed_twice_and_started_again(relay: Relay) -> None:
    inbox = Inbox(relay, port=0)
    inbox.start()
    url = inbox.url
    deliver(relay, message("Before"))
    inbox.close()
    inbox.close()
    deliver(relay, message("Between"))

    with inbox:
        deliver(relay, message("After"))

        assert inbox.url == url
        assert subjects(inbox) == ["After", "Between", "Before"]
        with connected(inbox) as connection:
            assert next(follow(connection))


def test_an_inbox_that_runs_cannot_be_started(inbox: Inbox) -> None:
    with pytest.raises(RuntimeError, match="runs already"):
        inbox.start()


def test_a_port_that_is_taken_is_an_error(relay: Relay, inbox: Inbox) -> None:
    with pytest.raises(OSError, match="in use"):
        Inbox(relay, port=port(inbox)).start()


def test_the_port_is_8025_unless_given(relay: Relay) -> None:
    assert Inbox(relay).url == "http://127.0.0.1:8025/"


@pytest.mark.parametrize(
    ("url", "secret", "wrong"),
    [
        ("ftp://localhost/", "whsec_x", "not an http"),
        ("localhost:8000", "whsec_x", "not an http"),
        ("http://localhost:8000/", None, "needs webhook_secret"),
        ("http://localhost:8000/", "", "needs webhook_secret"),
    ],
)
def test_a_webhook_that_cannot_be_posted_is_an_error_at_once(
    url: str, secret: str | None, wrong: str, relay: Relay
) -> None:
    with pytest.raises(ValueError, match=wrong):
        Inbox(relay, webhook_url=url, webhook_secret=secret)


def test_the_inbox_needs_no_django() -> None:
    program = """if True:
        import sys
        sys.modules["django"] = sys.modules["anymail"] = None
        from django_lettermint.testing import Relay
        from django_lettermint.testing.inbox import Inbox
        with Relay() as relay, Inbox(relay, port=0) as inbox:
            import urllib.request
            print(urllib.request.urlopen(inbox.url).status)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("200\n", "")
