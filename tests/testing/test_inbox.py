"""The inbox beside a relay: what it keeps, its guards, addresses, start and end."""

from __future__ import annotations

import smtplib
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from lettermint import Webhook

from django_lettermint.testing import Relay
from django_lettermint.testing.inbox import Inbox
from django_lettermint.testing.inbox.events import EVENTS
from django_lettermint.testing.inbox.mailbox import Mailbox
from tests.testing.inbox_client import Reader, reading
from tests.testing.receiving import SECRET
from tests.testing.records import ADA, message, received
from tests.testing.relay_client import WRONG

if TYPE_CHECKING:
    import http.client
    from collections.abc import Iterator

    from tests.testing.receiving import Receiver


@pytest.fixture
def posting(receiver: Receiver) -> Iterator[Reader]:
    """Read an inbox whose buttons post to the receiver; one mail is in it."""
    with reading(receiver.url, SECRET) as reader:
        reader.deliver(message(headers={"X-LM-Tag": "welcome"}))
        yield reader


# What it keeps


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ([10, 10, 10, 10, 10], [2, 3, 4]),
        ([300, 300, 300, 500], [2, 3]),
        ([300, 300, 400], [0, 1, 2]),
        ([300, 300, 401], [1, 2]),
        ([10, 5000], [1]),
    ],
)
def test_a_mailbox_keeps_the_newest_mails(sizes: list[int], kept: list[int]) -> None:
    mailbox = Mailbox(keep=3, max_octets=1000)
    mailbox.add(received(b"x" * 900))
    mailbox.clear()
    records = [received(b"x" * size) for size in sizes]
    for record in records:
        mailbox.add(record)
    assert [mail.record for mail in mailbox] == [records[n] for n in reversed(kept)]
    found = [mailbox.get(record.id) is not None for record in records]
    assert found == [number in kept for number in range(len(records))]


def test_each_change_makes_a_new_version() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)
    versions = [mailbox.version, Mailbox(keep=10, max_octets=1000).version]
    record = received()
    for _ in range(2):
        mailbox.add(record)
        versions.append(mailbox.version)
    (mail,) = mailbox
    for _ in range(2):
        mailbox.opened(mail)
        versions.append(mailbox.version)
    assert (versions[2], versions[4]) == (versions[3], versions[5])
    assert len(set(versions)) == 4


def test_an_inbox_begins_with_the_records_of_the_relay_and_keeps_them() -> None:
    relay = Relay(ports={"plaintext": 0, "starttls": 0})
    with relay:
        inbox = Inbox(relay, port=0)
        reader = Reader(relay, inbox)
        reader.deliver(message("Early"))
        with pytest.raises(smtplib.SMTPDataError):
            reader.deliver(WRONG)
        with inbox:
            relay.clear()
            assert reader.subjects == ["Hi", "Early"]


# Addresses


def test_the_list_has_what_the_relay_took_or_refused(reader: Reader) -> None:
    reader.deliver(message("First"))
    reader.relay.refuse("no@example.com")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        reader.deliver(message(), to=("no@example.com",))
    reader.deliver(message("Last"), security="starttls")
    assert reader.subjects == ["Last", "A recipient was refused", "First"]
    page = reader.get("/?q=%20l%61st+Ada")
    assert "1 of 3 mails" in page.text
    assert 'value="last Ada"' in page.source


def test_a_mail_is_unread_until_its_page_is_opened(reader: Reader) -> None:
    reader.deliver(message())
    assert "<title>(1) Inbox</title>" in reader.get().source
    reader.get(reader.newest)
    page = reader.get()
    assert "<title>Inbox</title>" in page.source
    assert "Unread." not in page.source


def test_an_inbox_can_be_cleared(reader: Reader) -> None:
    reader.deliver(message())
    mail = reader.newest
    answer = reader.post("/clear")
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert reader.subjects == []
    assert len(reader.relay.messages) == 1
    gone = reader.get(mail)
    assert gone.status == 404
    assert "the inbox keeps the newest ones only" in gone.text


def test_each_view_of_a_mail_has_its_address(reader: Reader) -> None:
    reader.deliver(message("Grüße"))
    path = reader.newest
    for view in ("Text", "Headers", "Source"):
        page = reader.get(path + view.lower())
        assert f'aria-current="page">{view}<' in page.source
    saved = reader.get(f"{path}message.eml")
    assert saved.body == reader.relay.messages[0].content
    assert saved.headers["Content-Type"] == "message/rfc822"
    assert saved.headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/none", 404),
        ("GET", "/mail/../style.css", 404),
        ("GET", "/%2e%2e/server.py", 404),
        ("GET", "/clear", 405),
        ("POST", "/", 405),
    ],
)
def test_an_address_or_method_that_does_not_exist_is_refused(
    method: str, path: str, status: int, reader: Reader
) -> None:
    assert reader.request(method, path).status == status


# Guards


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "LocalHost:9025", "localhost"])
def test_the_inbox_answers_to_names_of_this_machine(host: str, reader: Reader) -> None:
    assert reader.get("/", Host=host.format(reader.port)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example:{}",
        "localhost.evil.example:{}",
        "evil@127.0.0.1:{}",
        "127.0.0.1:{}:1",
        "127.0.0.1:x",
        "0.0.0.0:{}",
    ],
)
def test_any_other_name_gets_nothing(host: str | None, reader: Reader) -> None:
    reader.deliver(message())
    foreign = host and host.format(reader.port)
    for path in ("/", "/live", "/style.css", "/none"):
        answer = reader.get(path, Host=foreign)
        assert answer.status == 403
        assert f"open {reader.inbox.url}" in answer.text
        assert "mail/" not in answer.source


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, None),
        ("null", None),
        ("http://evil.example", None),
        ("https://127.0.0.1:{}", None),
        ("http://127.0.0.1:8000", None),
        ("http://localhost:{}", None),
        ("http://evil.example", "evil.example"),
    ],
)
def test_a_form_on_another_site_changes_nothing(
    origin: str | None, host: str | None, posting: Reader, receiver: Receiver
) -> None:
    sent = {"Origin": origin and origin.format(posting.port)}
    sent |= {"Host": host} if host else {}
    form = f"event=bounced&recipient={ADA}"
    for path in ("/clear", f"{posting.newest}events"):
        assert posting.request("POST", path, sent, body=form).status == 403
    assert posting.subjects == ["Hi"]
    assert receiver.requests == []


@pytest.mark.parametrize("length", ["65537", "9999999999", "-1", ""])
def test_a_body_that_no_form_has_is_refused(length: str, reader: Reader) -> None:
    reader.deliver(message())
    answer = reader.request("POST", "/clear", {"Content-Length": length})
    assert answer.status == 413
    assert reader.subjects == ["Hi"]


def test_no_answer_opens_anything_to_other_sites(reader: Reader) -> None:
    reader.deliver(message())
    mail = reader.newest
    own = ["/", "/style.css", "/none", mail]
    for path in (*own, f"{mail}document", f"{mail}message.eml"):
        headers = (answer := reader.get(path, Origin="http://evil.example")).headers
        assert answer.status == (404 if path == "/none" else 200)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"].strip() == "LettermintInbox"
        assert "Access-Control-Allow-Origin" not in headers
        assert answer.policy["default-src"] == "'none'"
        if path in own:
            assert answer.policy["frame-ancestors"] == "'none'"
            policy = headers["Content-Security-Policy"]
            assert "unsafe" not in policy
            assert "http" not in policy


def test_a_request_for_two_hosts_is_refused(reader: Reader) -> None:
    with socket.create_connection(("127.0.0.1", reader.port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.0 403 ")


def test_the_inbox_has_its_port_at_one_local_address_only(reader: Reader) -> None:
    socket.create_server(("127.0.0.2", reader.port)).close()


# Webhooks


@pytest.mark.parametrize("button", EVENTS)
def test_a_button_posts_its_event(
    button: str, posting: Reader, receiver: Receiver
) -> None:
    path = posting.newest
    assert f'value="{button}"' in posting.get(path).source
    answer = posting.post(f"{path}events", event=button, recipient=ADA)
    assert (answer.status, answer.headers["Location"]) == (303, f"{path}#webhooks")
    ((headers, body),) = receiver.requests
    payload = Webhook(SECRET).verify(body, headers)
    assert payload["event"] == EVENTS[button]
    assert payload["data"]["message_id"] == posting.relay.messages[0].id
    assert payload["data"]["recipient"] == ADA
    assert payload["data"]["tag"] == "welcome"
    views = [posting.get(path + view) for view in ("", "text", "headers", "source")]
    assert f"{button} {ADA} 200" in views[0].text
    for page in (posting.get(), *views):
        assert SECRET not in page.source
        assert posting.relay.token not in page.source


def test_an_event_is_about_the_recipient_and_the_mail_that_were_chosen(
    posting: Reader, receiver: Receiver
) -> None:
    posting.deliver(message(), to=(ADA, "bo@example.com"))
    path = posting.newest
    for recipient in ("bo@example.com", ADA):
        posting.post(f"{path}events", event="bounced", recipient=recipient)
    told = [event["data"]["recipient"] for event in receiver.events]
    assert told == ["bo@example.com", ADA]
    said = f"bounced {ADA} 200 bounced bo@example.com 200"
    assert said in posting.get(path).text
    posting.deliver(message())
    assert "bounced bo@example.com" not in posting.get(posting.newest).text


@pytest.mark.parametrize(
    ("event", "recipient"),
    [("", ADA), ("message.opened", ADA), ("bounced", "eve@example.com")],
)
def test_an_event_that_no_button_posts_is_refused(
    event: str, recipient: str, posting: Reader, receiver: Receiver
) -> None:
    form = {"event": event, "recipient": recipient}
    assert posting.post(f"{posting.newest}events", **form).status == 400
    assert receiver.requests == []


def test_a_refused_mail_has_no_events(posting: Reader, receiver: Receiver) -> None:
    with pytest.raises(smtplib.SMTPDataError):
        posting.deliver(WRONG)
    path = f"{posting.newest}events"
    assert posting.post(path, event="bounced", recipient=ADA).status == 400
    assert receiver.requests == []


def test_an_inbox_that_knows_no_url_says_how_to_give_it(reader: Reader) -> None:
    reader.deliver(message())
    page = reader.get(reader.newest)
    assert "Start the relay with --webhook URL --secret SECRET" in page.text
    assert "<button" not in page.source
    answer = reader.post(f"{reader.newest}events", event="bounced", recipient=ADA)
    assert answer.status == 409
    assert "--webhook URL" in answer.text


def test_a_webhook_that_cannot_be_posted_is_an_error_at_once(relay: Relay) -> None:
    with pytest.raises(ValueError, match="not an http"):
        Inbox(relay, webhook_url="ftp://localhost/", webhook_secret=SECRET)
    with pytest.raises(ValueError, match="needs webhook_secret"):
        Inbox(relay, webhook_url="http://localhost:8000/", webhook_secret="")


# Live, start and end


def follow(connection: http.client.HTTPConnection) -> Iterator[str]:
    """Yield the versions that the inbox tells."""
    connection.request("GET", "/live")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for line in answer:
        if line.startswith(b"data: "):
            yield line.removeprefix(b"data: ").strip().decode()


def test_a_stream_tells_each_change(reader: Reader) -> None:
    with reader.connected() as connection:
        versions = follow(connection)
        first = next(versions)
        assert f'data-version="{first}"' in reader.get().source
        reader.deliver(message("Another"))
        second = next(versions)
        reader.post("/clear")
        third = next(versions)
    assert len({first, second, third}) == 3
    reader.deliver(message("After the stream has ended"))
    assert len(reader.subjects) == 1


def test_closing_ends_the_streams_and_all_threads(relay: Relay) -> None:
    before = set(threading.enumerate())
    inbox = Inbox(relay, port=0)
    reader = Reader(relay, inbox)
    inbox.start()
    with reader.connected() as one, reader.connected() as silent:
        silent.connect()
        versions = follow(one)
        next(versions)
        inbox.close()
        assert list(versions) == []
    assert set(threading.enumerate()) <= before


def test_an_inbox_can_be_closed_twice_and_started_again(reader: Reader) -> None:
    inbox, url = reader.inbox, reader.inbox.url
    reader.deliver(message("Before"))
    with pytest.raises(RuntimeError, match="running already"):
        inbox.start()
    with pytest.raises(OSError, match="in use"):
        Inbox(reader.relay, port=reader.port).start()
    inbox.close()
    inbox.close()
    reader.deliver(message("Between"))
    inbox.start()
    reader.deliver(message("After"))
    assert inbox.url == url
    assert reader.subjects == ["After", "Between", "Before"]
    with reader.connected() as connection:
        assert next(follow(connection))


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
