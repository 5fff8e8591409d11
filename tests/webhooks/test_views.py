"""The webhook views: which requests are refused, and what reaches the receivers."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any

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
from tests.webhooks.payloads import DATA, OUR_ID, encode, payload
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

SENT = payload("message.sent")
BODY = encode(SENT)


def assert_refused(response: Any, receiver: Receiver, status: int = 400) -> None:
    """Assert that the answer gives no details, and that no receiver ran."""
    assert (response.status_code, response.content) == (status, b"")
    assert receiver.events == []


# -- URLs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("urlconf", "prefix"),
    [("tests.webhook_urls", "/anymail"), ("tests.webhooks.urls_alone", "")],
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


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_only_post_is_allowed(method: str, receiver: Receiver) -> None:
    response = send(BODY, signed(BODY), method=method)

    assert (response.status_code, response["Allow"]) == (405, "POST")
    assert receiver.events == []


@pytest.mark.django_db
def test_a_site_that_requires_login_lets_webhooks_in(
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


# -- events ----------------------------------------------------------------------------


@pytest.mark.parametrize("event_type", sorted(DATA))
def test_each_event_reaches_its_signal_once(
    event_type: str, receiver: Receiver
) -> None:
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
def test_the_inbound_url_accepts_events_that_hold_no_mail(
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


def test_the_signed_body_names_the_event_not_its_header(receiver: Receiver) -> None:
    headers = signed(BODY) | {"X-Lettermint-Event": "message.hard_bounced"}

    assert send(BODY, headers).status_code == 200
    assert [event.event_type for event in receiver.events] == ["sent"]


# -- signatures ------------------------------------------------------------------------


def test_the_raw_bytes_are_what_is_signed(receiver: Receiver) -> None:
    body = (
        b'{ "data":{"recipient":"\xc3\xbc@example.com/\\u00fc"},"id":"1",\n'
        b'"timestamp":"2026-02-08T20:14:00Z", "event":"message.sent"}'
    )

    assert post(body).status_code == 200
    assert [event.recipient for event in receiver.events] == ["ü@example.com/ü"]
    assert send(body.replace(b"1", b"2", 1), signed(body)).status_code == 400


@pytest.mark.parametrize("secret", [SECRET, "whsec_previous"])
def test_each_of_several_secrets_is_accepted(
    secret: str, settings: Any, receiver: Receiver
) -> None:
    configure(settings, signing_secret=[SECRET, "whsec_previous"])

    assert post(SENT, secret).status_code == 200
    assert post(SENT, "whsec_other").status_code == 400


@pytest.mark.parametrize(
    ("age", "status"), [(290, 200), (-290, 200), (310, 400), (-310, 400), (10**6, 400)]
)
def test_a_signature_counts_for_five_minutes(age: int, status: int) -> None:
    assert post(SENT, age=age).status_code == status


@pytest.mark.parametrize(
    "change",
    [
        {"X-Lettermint-Delivery": "1700000000"},
        {"X-Lettermint-Delivery": "९"},
        {"X-Lettermint-Delivery": ""},
        {"X-Lettermint-Signature": ""},
        {"X-Lettermint-Signature": "nonsense"},
        {"X-Lettermint-Signature": "t={time}"},
        {"X-Lettermint-Signature": "v1={digest}"},
        {"X-Lettermint-Signature": "t={time},v1="},
        {"X-Lettermint-Signature": "t={time},v1=é{digest}"},
        {"X-Lettermint-Signature": "t={time},v0={digest}"},
        {"X-Lettermint-Signature": "t={time},t={time},v1={digest}"},
        {"X-Lettermint-Signature": "=" * 10_000},
    ],
    ids=str,
)
def test_odd_signature_headers_are_refused(
    change: dict[str, str], receiver: Receiver
) -> None:
    headers = signed(BODY)
    known = {
        "time": headers["X-Lettermint-Delivery"],
        "digest": headers["X-Lettermint-Signature"].rpartition("=")[2],
    }
    [(name, value)] = change.items()
    # As Django decodes the UTF-8 octets of a header.
    headers[name] = value.format(**known).encode().decode("latin-1")

    assert_refused(send(BODY, headers), receiver)


@pytest.mark.parametrize(
    ("secret", "status"), [(None, 403), ("", 403), ([], 403), ([SECRET, ""], 500)]
)
def test_an_empty_secret_never_counts(
    secret: object, status: int, settings: Any, receiver: Receiver
) -> None:
    configure(settings, signing_secret=secret)

    assert post(SENT, "").status_code == post(SENT).status_code == status
    assert receiver.events == []


def test_basic_auth_is_checked_as_well_if_configured(
    settings: Any, receiver: Receiver
) -> None:
    settings.ANYMAIL |= {"WEBHOOK_SECRET": "user:pass"}

    assert_refused(post(SENT), receiver)
    right = signed(BODY) | {"Authorization": "Basic dXNlcjpwYXNz"}
    assert send(BODY, right).status_code == 200


@pytest.mark.parametrize(
    ("refuse", "reason"),
    [
        (lambda: post(SENT, "whsec_other"), "signature_mismatch"),
        (lambda: post(SENT, age=1000), "timestamp_out_of_tolerance"),
        (lambda: send(BODY, {}), "signature_header_missing"),
        (
            lambda: send(BODY, {"X-Lettermint-Signature": "t=1,v1=2"}),
            "delivery_header_missing",
        ),
        (lambda: post(b" " * (2**20 + 1)), "request_too_large"),
    ],
)
def test_only_the_log_gives_the_reason_and_no_secret(
    refuse: Callable[[], Any],
    reason: str,
    settings: Any,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.DEBUG = True
    configure(settings, signing_secret=["whsec_first", SECRET])

    status = 413 if reason == "request_too_large" else 400
    assert_refused(refuse(), receiver, status)
    assert (
        "django_lettermint.webhooks",
        logging.WARNING,
        f"Lettermint webhook refused: {reason}",
    ) in caplog.record_tuples
    assert "whsec_" not in caplog.text


# -- malformed requests ----------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe{}", b"\xef\xbb\xbf{}"),
        b'{"id":"\xff"}',
        b'{"id":"1","event":"message.sent"}',
        b'{"id":' * 50_000,
        b'{"id":"1","n":' + b"9" * 5000 + b"}",
        b"\x1f\x8b\x08\x00gzip",
    ],
    ids=lambda body: repr(body[:16]),
)
def test_a_malformed_body_is_refused(body: bytes, receiver: Receiver) -> None:
    assert_refused(post(body), receiver)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud800"'])
def test_a_value_that_receivers_could_not_store_is_refused(
    value: str, receiver: Receiver
) -> None:
    assert_refused(post(BODY.replace(b'"spring"', value.encode())), receiver)


@pytest.mark.parametrize(
    ("depth", "status"), [(64, 200), (65, 400), (900, 400), (9000, 400)]
)
@pytest.mark.parametrize(("start", "end"), [('{"a":', "}"), ("[", "]")])
def test_values_may_be_64_levels_deep(
    start: str, end: str, depth: int, status: int
) -> None:
    inner = depth - 2  # the event and its data are the first two
    value = start * inner + "0" + end * inner
    body = encode(payload("message.sent", extra="HERE"))

    response = post(body.replace(b'"HERE"', value.encode()))

    assert response.status_code == status


# -- size ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "status"),
    [(2**20 + 1, 413), ("1,1", 400), ("x", 400), ("9" * 5000, 400)],
)
def test_a_body_whose_declared_size_is_odd_or_too_large_is_refused(
    length: object, status: int, receiver: Receiver
) -> None:
    response = send(BODY, signed(BODY), CONTENT_LENGTH=str(length))

    assert_refused(response, receiver, status)


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


class BrokenPipe:
    """A connection that fails while the body is read."""

    def read(self, size: int = -1) -> bytes:
        raise OSError("connection reset")

    readline = read


def test_a_connection_that_breaks_is_refused(receiver: Receiver) -> None:
    environ: dict[str, Any] = {"wsgi.input": BrokenPipe(), "CONTENT_LENGTH": "2"}

    assert_refused(send(b"{}", signed(b"{}"), **environ), receiver)


def test_a_mail_larger_than_djangos_limit_is_received(
    settings: Any, receiver: Receiver
) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    content = payload("message.inbound", body={"text": "x" * 2_000_000, "html": None})

    assert post(content, url=INBOUND).status_code == 200
    [event] = receiver.events
    assert len(event.message.text) == 2_000_000


# -- set-up ----------------------------------------------------------------------------


def test_a_missing_sdk_is_reported_when_the_url_is_made(
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


# -- the documentation -----------------------------------------------------------------


def test_the_documented_receivers_work(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    shown = snippet(DOCS / "webhooks.md", "@receiver(tracking)")
    with receivers_forgotten(), caplog.at_level(logging.INFO, logger="shop.receivers"):
        kept = shown.run({"__name__": "shop.receivers"})
        for event_type in ("message.hard_bounced", "message.inbound"):
            url = INBOUND if event_type == "message.inbound" else TRACKING
            content = payload(event_type) | {"id": event_type}
            assert post(content, url=url).status_code == 200

    assert {"on_tracking", "on_inbound"} <= kept.keys()
    assert f"{OUR_ID} bounced: User unknown" in caplog.text
    assert "Grüße" in caplog.text


@pytest.mark.parametrize(
    "sender",
    [
        "[Shop] News <n@example.com>",
        "Last, First <a@example.com>",
        "MAILER-DAEMON (Mail Delivery System)",
        *("<>", "a@", "a@[", '"'),
    ],
)
def test_the_documented_receiver_accepts_any_sender(sender: str) -> None:
    header = {"headers": [{"name": "From", "value": sender}]}
    field = {"headers": [], "from": {"email": sender, "name": sender}}
    shown = snippet(DOCS / "webhooks.md", "@receiver(tracking)")
    with receivers_forgotten():
        kept = shown.run({"__name__": "shop.receivers"})
        for place in (header, field):
            content = payload("message.inbound", **place) | {"id": str(len(place))}
            assert post(content, url=INBOUND).status_code == 200
    assert "on_inbound" in kept
