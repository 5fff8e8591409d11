"""The webhook views: which requests are refused, and what reaches the receivers."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from django.core.handlers.asgi import ASGIRequest
from django.test import Client
from django.urls import reverse

from django_lettermint.webhooks import (
    LettermintTrackingWebhookView,
    LettermintWebhookView,
)
from tests.snippets import DOCS, receivers_forgotten, snippet
from tests.webhooks.payloads import OUR_ID, encode, payload
from tests.webhooks.posting import (
    INBOUND,
    SECRET,
    TRACKING,
    Receiver,
    configure,
    post,
    request,
    send,
    signed,
)

if TYPE_CHECKING:
    from django.http import HttpResponse

SENT = payload("message.sent")
BODY = encode(SENT)


# URLs


@pytest.mark.parametrize(
    ("urlconf", "prefix"),
    [("tests.webhook_urls", "/anymail"), ("tests.webhooks.urls_tenants", "")],
)
def test_the_urls_reverse_and_answer_wherever_they_are_included(
    urlconf: str, prefix: str, settings: Any, receiver: Receiver
) -> None:
    settings.ROOT_URLCONF = urlconf
    there = reverse("lettermint_tracking_webhook")
    here = reverse("lettermint_inbound_webhook")

    assert there == f"{prefix}/lettermint/tracking/"
    assert here == f"{prefix}/lettermint/inbound/"
    assert post(SENT, url=there).status_code == 200
    assert post(payload("message.inbound") | {"id": "2"}, url=here).status_code == 200
    assert [event.event_id for event in receiver.events] == [SENT["id"], "2"]


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS"])
def test_only_post_is_allowed(method: str, receiver: Receiver) -> None:
    response = send(BODY, signed(BODY), method=method)

    assert (response.status_code, response["Allow"]) == (405, "POST")
    assert receiver.events == []


@pytest.mark.django_db
def test_a_site_behind_login_lets_webhooks_in(
    settings: Any, receiver: Receiver
) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django.contrib.sessions"]
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]

    assert post(SENT).status_code == 200
    assert len(receiver.events) == 1


# Events


@pytest.mark.parametrize(
    "event_type", ["message.inbound", "message.delivered", "webhook.test"]
)
def test_an_event_reaches_its_signal_once(event_type: str, receiver: Receiver) -> None:
    url = INBOUND if event_type == "message.inbound" else TRACKING

    assert post(payload(event_type), url=url).status_code == 200

    expected = [] if event_type == "webhook.test" else [payload(event_type)]
    assert [event.esp_event for event in receiver.events] == expected


@pytest.mark.parametrize(
    ("options", "metadata"),
    [({}, "django_message_id"), ({"correlation_key": "ref"}, "ref")],
)
def test_an_event_carries_the_id_of_the_sent_message(
    options: dict[str, str], metadata: str, settings: Any, receiver: Receiver
) -> None:
    configure(settings, **options)
    post(payload("message.delivered", metadata={metadata: OUR_ID}))

    assert [event.message_id for event in receiver.events] == [OUR_ID]


@pytest.mark.parametrize("event_type", ["webhook.test", "message.teleported"])
def test_events_without_a_mail_are_accepted(
    event_type: str, receiver: Receiver
) -> None:
    assert post(payload(event_type), url=INBOUND).status_code == 200
    assert receiver.events == []


@pytest.mark.parametrize(
    ("event_type", "url", "right"),
    [
        ("message.inbound", TRACKING, "lettermint/inbound/"),
        ("message.sent", INBOUND, "lettermint/tracking/"),
    ],
)
def test_an_event_at_the_wrong_url_names_the_right_one_and_is_kept(
    event_type: str, url: str, right: str, receiver: Receiver
) -> None:
    body = encode(payload(event_type))
    with pytest.raises(AnymailConfigurationError, match=right):
        Client().generic("POST", url, body, headers=signed(body))

    assert send(body, signed(body), url=url).status_code == 500
    assert receiver.events == []


# Signatures


def test_the_raw_bytes_are_what_is_signed_and_what_counts(receiver: Receiver) -> None:
    body = (
        b'{ "data":{"recipient":"\xc3\xbc@example.com/\\u00fc"},"id":"1",\n'
        b'"timestamp":"2026-02-08T20:14:00Z", "event":"message.sent"}'
    )
    headers = signed(body) | {"X-Lettermint-Event": "message.hard_bounced"}

    assert send(body, headers).status_code == 200
    [event] = receiver.events
    assert (event.event_type, event.recipient) == ("sent", "ü@example.com/ü")
    assert send(body.replace(b"1", b"2", 1), headers).status_code == 400


@pytest.mark.parametrize("secret", [SECRET, "whsec_previous"])
def test_each_secret_is_accepted(
    secret: str, settings: Any, receiver: Receiver
) -> None:
    configure(settings, signing_secret=[SECRET, "whsec_previous"])

    assert post(SENT, secret).status_code == 200
    assert post(SENT, "whsec_other").status_code == 400


@pytest.mark.parametrize("age", [290, -290])
def test_a_signature_counts_for_five_minutes(age: int) -> None:
    assert post(SENT, age=age).status_code == 200


@pytest.mark.parametrize(
    ("secret", "status"), [(None, 403), ("", 403), ([], 403), ([SECRET, ""], 500)]
)
def test_an_empty_secret_never_counts(
    secret: object, status: int, settings: Any, receiver: Receiver
) -> None:
    configure(settings, signing_secret=secret)

    assert post(SENT, "").status_code == post(SENT).status_code == status
    assert receiver.events == []


def test_basic_auth_is_checked_as_well(settings: Any, receiver: Receiver) -> None:
    settings.ANYMAIL |= {"WEBHOOK_SECRET": "user:pass"}

    assert post(SENT).status_code == 400
    right = signed(BODY) | {"Authorization": "Basic dXNlcjpwYXNz"}
    assert send(BODY, right).status_code == 200


# Refused requests


def with_header(name: str, value: str) -> HttpResponse:
    headers = signed(BODY)
    value = value.format(time=headers["X-Lettermint-Delivery"])
    # As Django decodes the UTF-8 octets of a header.
    octets = value.encode()
    return send(BODY, headers | {f"X-Lettermint-{name}": octets.decode("latin-1")})


def nested(depth: int, start: str, end: str) -> bytes:
    """Return an event with so many levels; its own objects are the first two."""
    value = start * (depth - 2) + "0" + end * (depth - 2)
    body = encode(payload("message.sent", extra="HERE"))
    return body.replace(b'"HERE"', value.encode())


class BrokenPipe:
    """A connection that fails while the body is read."""

    def read(self, size: int = -1) -> bytes:
        raise OSError("connection reset")

    readline = read


BROKEN: dict[str, Any] = {"wsgi.input": BrokenPipe()}


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (partial(post, SENT, "whsec_other"), "signature_mismatch"),
        (partial(with_header, "Signature", "t={time},v1=zz"), "signature_"),
        (partial(with_header, "Signature", "t={time},v1=é"), "signature_"),
        (partial(with_header, "Signature", "t={time}"), "signature_"),
        (partial(with_header, "Delivery", "1700000000"), "delivery_"),
        (partial(with_header, "Delivery", "९"), "delivery_"),
        (partial(send, BODY, {}), "signature_header_missing"),
        (partial(post, SENT, age=310), "timestamp_out_of_tolerance"),
        (partial(post, SENT, age=-310), "timestamp_out_of_tolerance"),
        (partial(post, b""), "body_invalid"),
        (partial(post, b"{"), "payload_invalid"),
        (partial(post, b"[]"), "payload_invalid"),
        (partial(post, b"\xff\xfe{}"), "payload_invalid"),
        (partial(post, b'{"id":"\xff"}'), "payload_invalid"),
        (partial(post, b'{"id":' * 50_000), "payload_invalid"),
        (partial(post, b'{"n":' + b"9" * 5000 + b"}"), "payload_invalid"),
        # Receivers could not store these.
        (partial(post, BODY.replace(b'"spring"', b"NaN")), "payload_invalid"),
        (partial(post, BODY.replace(b'"spring"', b"-Infinity")), "payload_invalid"),
        (partial(post, BODY.replace(b'"spring"', b"1e999")), "payload_invalid"),
        (partial(post, BODY.replace(b"spring", rb"\ud800")), "payload_invalid"),
        (partial(post, nested(65, "[", "]")), "payload_invalid"),
        (partial(post, nested(65, '{"a":', "}")), "payload_invalid"),
        (partial(post, nested(9000, "[", "]")), "payload_invalid"),
        (partial(post, b"{}"), "id_invalid"),
        (partial(send, b"{}", {}, CONTENT_LENGTH="1,1"), "request_unreadable"),
        (partial(send, b"{}", {}, CONTENT_LENGTH="9" * 5000), "request_unreadable"),
        (partial(send, b"{}", {}, **BROKEN), "request_unreadable"),
        (partial(send, b"{}", {}, CONTENT_LENGTH="1048577"), "request_too_large"),
    ],
)
def test_a_request_is_refused_without_details_and_its_reason_is_logged(
    refused: Callable[[], HttpResponse],
    reason: str,
    settings: Any,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.DEBUG = True
    configure(settings, signing_secret=["whsec_first", SECRET])

    response = refused()

    status = 413 if reason == "request_too_large" else 400
    assert (response.status_code, response.content) == (status, b"")
    assert receiver.events == []
    logger, level, message = caplog.record_tuples[0]
    assert (logger, level) == ("django_lettermint.webhooks", logging.WARNING)
    assert message.startswith(f"Lettermint webhook refused: {reason}")
    assert "whsec_" not in caplog.text


@pytest.mark.parametrize(("start", "end"), [('{"a":', "}"), ("[", "]")])
def test_values_may_be_64_levels_deep(start: str, end: str) -> None:
    assert post(nested(64, start, end)).status_code == 200


# Size


def test_a_body_of_undeclared_size_is_read_up_to_the_limit_only() -> None:
    stream = BytesIO(b" " * (LettermintTrackingWebhookView.max_body_size + 100))
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}

    response = LettermintTrackingWebhookView.as_view()(ASGIRequest(scope, stream))

    assert response.status_code == 413
    assert stream.tell() == LettermintTrackingWebhookView.max_body_size + 1


@pytest.mark.parametrize("excess", [0, 1])
def test_a_url_can_have_a_limit(excess: int) -> None:
    view = LettermintTrackingWebhookView.as_view(max_body_size=len(BODY) - excess)

    assert view(request()).status_code == (413 if excess else 200)


def test_a_mail_above_djangos_limit_arrives(settings: Any, receiver: Receiver) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    content = payload("message.inbound", body={"text": "x" * 2_000_000, "html": None})

    assert post(content, url=INBOUND).status_code == 200
    [event] = receiver.events
    assert len(event.message.text) == 2_000_000


# Set-up


def test_a_missing_sdk_is_reported_with_the_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lettermint.webhook", None)
    monkeypatch.delitem(
        sys.modules, "django_lettermint.webhooks.signature", raising=False
    )
    remedy = r'pip install "django-lettermint-smtp\[webhooks\]"'
    with pytest.raises(AnymailConfigurationError, match=remedy):
        LettermintTrackingWebhookView.as_view()


def test_the_package_does_not_import_the_sdk() -> None:
    program = """
import sys
import django_lettermint.webhooks
sys.exit("lettermint" in sys.modules or "httpx" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_view_must_define_what_it_sends() -> None:
    with pytest.raises(NotImplementedError):
        LettermintWebhookView.as_view(max_body_size=2**20)(request())


# The documentation


def test_the_documented_receivers_work_for_any_sender(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    bounced = payload("message.hard_bounced")
    mails = [payload("message.inbound")]
    for sender in ("[Shop] News <n@example.com>", "MAILER-DAEMON (Mail)", "a@[", '"'):
        header = {"headers": [{"name": "From", "value": sender}]}
        field = {"headers": [], "from": {"email": sender, "name": sender}}
        mails += [payload("message.inbound", **place) for place in (header, field)]
    shown = snippet(DOCS / "webhooks.md", "@receiver(tracking)")
    with receivers_forgotten(), caplog.at_level(logging.INFO, logger="shop.receivers"):
        kept = shown.run({"__name__": "shop.receivers"})
        assert post(bounced).status_code == 200
        for number, mail in enumerate(mails):
            answer = post(mail | {"id": str(number)}, url=INBOUND)
            assert answer.status_code == 200

    assert {"on_tracking", "on_inbound"} <= kept.keys()
    assert f"{OUR_ID} bounced: User unknown" in caplog.text
    assert "Grüße" in caplog.text
