"""Signed requests through Django's test client, and what reaches the receivers."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from anymail.signals import AnymailEvent, inbound, tracking
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache
from django.core.handlers.asgi import ASGIRequest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils.functional import SimpleLazyObject, lazystr

from django_lettermint.conf import Secret
from django_lettermint.webhooks import (
    LettermintInboundWebhookView,
    LettermintTrackingWebhookView,
    LettermintWebhookView,
)
from django_lettermint.webhooks.dedupe import CLAIM_SECONDS, REMEMBER_SECONDS
from tests.snippets import DOCS, receivers_forgotten, snippet

from .payloads import DATA, OUR_ID, encode, payload

SECRET = "whsec_current"
OLD_SECRET = "whsec_previous"
TRACKING, INBOUND = "/anymail/lettermint/tracking/", "/anymail/lettermint/inbound/"

Post = Callable[..., HttpResponse]


class Receiver:
    """Collects events; a receiver as users write it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.action: Callable[[], object] = lambda: None

    def __call__(
        self, sender: type, event: AnymailEvent, esp_name: str, **kwargs: object
    ) -> None:
        assert issubclass(sender, LettermintWebhookView)
        assert esp_name == "Lettermint"
        self.events.append(event)
        self.action()

    def ids(self) -> list[str]:
        return [event.event_id for event in self.events]


def digest(body: bytes, at: str, secret: str = SECRET) -> str:
    signed = at.encode() + b"." + body
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def signed(
    body: bytes, *, secret: str = SECRET, age: int = 0, at: str = ""
) -> dict[str, str]:
    """Return the headers that Lettermint sends along with `body`."""
    at = at or str(int(time.time()) - age)
    return {
        "X-Lettermint-Signature": f"t={at},v1={digest(body, at, secret)}",
        "X-Lettermint-Delivery": at,
        "X-Lettermint-Event": "message.delivered",
        "X-Lettermint-Attempt": "1",
    }


def send(
    body: bytes,
    headers: Mapping[str, str],
    *,
    url: str = TRACKING,
    method: str = "POST",
    **extra: Any,
) -> HttpResponse:
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    return client.generic(  # type: ignore[return-value]
        method, url, body, "application/json", headers=dict(headers), **extra
    )


def post(content: object, *, url: str = TRACKING, **how: Any) -> HttpResponse:
    body = content if isinstance(content, bytes) else encode(content)
    return send(body, signed(body, **how), url=url)


def configure(settings: Any, **options: object) -> None:
    named = {f"LETTERMINT_{name.upper()}": value for name, value in options.items()}
    settings.ANYMAIL = {"LETTERMINT_SIGNING_SECRET": SECRET} | named


@pytest.fixture(autouse=True)
def _project(settings: Any, request: pytest.FixtureRequest) -> None:
    settings.ROOT_URLCONF = "tests.webhooks.urls"
    settings.MIDDLEWARE = ["django.middleware.csrf.CsrfViewMiddleware"]
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "LOCATION": request.node.nodeid,
        }
    }
    configure(settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    tracking.connect(receiver)
    inbound.connect(receiver)
    yield receiver
    tracking.disconnect(receiver)
    inbound.disconnect(receiver)


def refused(response: HttpResponse, receiver: Receiver, status: int = 400) -> bool:
    """Tell whether the request was refused without a word and without a signal."""
    answer = (response.status_code, response.content, receiver.events)
    assert answer == (status, b"", [])
    return True


# --- where the views are ---


@pytest.mark.parametrize(
    ("urlconf", "prefix"),
    [("tests.webhooks.urls", "/anymail"), ("tests.webhooks.urls_alone", "")],
)
def test_the_urls_reverse_and_answer_wherever_they_are_included(
    urlconf: str, prefix: str, settings: Any, receiver: Receiver
) -> None:
    settings.ROOT_URLCONF = urlconf
    there = reverse("lettermint_tracking_webhook")
    here = reverse("lettermint_inbound_webhook")
    assert there == f"{prefix}/lettermint/tracking/"
    assert here == f"{prefix}/lettermint/inbound/"
    assert post(payload("message.sent"), url=there).status_code == 200
    assert post(payload("message.inbound") | {"id": "2"}, url=here).status_code == 200
    assert receiver.ids() == [payload("message.sent")["id"], "2"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("url", [TRACKING, INBOUND])
def test_nothing_but_post_is_allowed(method: str, url: str, receiver: Receiver) -> None:
    body = encode(payload("message.sent"))
    response = send(body, signed(body), url=url, method=method)
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
    assert post(payload("message.sent")).status_code == 200
    assert len(receiver.events) == 1


# --- events ---


@pytest.mark.parametrize("event_type", sorted(DATA))
def test_each_event_reaches_its_signal_once(
    event_type: str, receiver: Receiver
) -> None:
    url = INBOUND if event_type == "message.inbound" else TRACKING
    assert post(payload(event_type), url=url).status_code == 200
    expected = [] if event_type == "webhook.test" else [payload(event_type)]
    assert [event.esp_event for event in receiver.events] == expected


def test_an_event_carries_the_id_of_the_sent_message(receiver: Receiver) -> None:
    post(payload("message.delivered"))
    assert [event.message_id for event in receiver.events] == [OUR_ID]


def test_the_correlation_key_is_the_configured_one(
    settings: Any, receiver: Receiver
) -> None:
    configure(settings, correlation_key="ref")
    post(payload("message.delivered", metadata={"ref": "r1"}))
    assert [event.message_id for event in receiver.events] == ["r1"]


def test_an_unknown_event_is_accepted(receiver: Receiver) -> None:
    assert post(payload("message.teleported")).status_code == 200
    assert [event.event_type for event in receiver.events] == ["unknown"]


@pytest.mark.parametrize("event_type", ["webhook.test", "message.teleported"])
def test_an_inbound_url_accepts_what_holds_no_mail(
    event_type: str, receiver: Receiver
) -> None:
    assert post(payload(event_type), url=INBOUND).status_code == 200
    assert receiver.events == []


@pytest.mark.parametrize(
    ("event_type", "url"), [("message.inbound", TRACKING), ("message.sent", INBOUND)]
)
def test_an_event_at_the_wrong_url_names_the_right_one_and_is_kept(
    event_type: str, url: str, receiver: Receiver
) -> None:
    body = encode(payload(event_type))
    client = Client(enforce_csrf_checks=True)
    right = "tracking" if url == INBOUND else "inbound"
    with pytest.raises(AnymailConfigurationError, match=f"lettermint/{right}/"):
        client.generic("POST", url, body, "application/json", headers=signed(body))
    assert post(payload(event_type), url=url).status_code == 500
    assert receiver.events == []


def test_the_signed_body_decides_not_the_event_header(receiver: Receiver) -> None:
    body = encode(payload("message.sent"))
    headers = signed(body) | {"X-Lettermint-Event": "message.hard_bounced"}
    assert send(body, headers).status_code == 200
    assert [event.event_type for event in receiver.events] == ["sent"]


# --- signatures ---


def test_the_raw_bytes_are_what_is_signed(receiver: Receiver) -> None:
    body = (
        b'{ "data":{"recipient":"\xc3\xbc@example.com/\\u00fc"},"id":"1",\n'
        b'"timestamp":"2026-02-08T20:14:00Z", "event":"message.sent"}'
    )
    assert post(body).status_code == 200
    assert [event.recipient for event in receiver.events] == ["ü@example.com/ü"]


def test_one_changed_byte_is_refused(receiver: Receiver) -> None:
    body = encode(payload("message.sent"))
    changed = body.replace(b"Acme", b"Acne", 1)
    assert refused(send(changed, signed(body)), receiver)


def test_another_secret_is_refused(receiver: Receiver) -> None:
    assert refused(post(payload("message.sent"), secret="whsec_other"), receiver)


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_each_of_several_secrets_is_accepted(
    secret: str, settings: Any, receiver: Receiver
) -> None:
    configure(settings, signing_secret=[SECRET, OLD_SECRET])
    assert post(payload("message.sent"), secret=secret).status_code == 200
    assert len(receiver.events) == 1


@pytest.mark.parametrize("first", [SECRET, OLD_SECRET])
def test_each_of_several_signatures_is_accepted(first: str, receiver: Receiver) -> None:
    body, at = encode(payload("message.sent")), str(int(time.time()))
    second = OLD_SECRET if first == SECRET else SECRET
    both = ",".join(f"v1={digest(body, at, secret)}" for secret in (first, second))
    headers = signed(body) | {
        "X-Lettermint-Signature": f"t={at},{both}",
        "X-Lettermint-Delivery": at,
    }
    assert send(body, headers).status_code == 200
    assert len(receiver.events) == 1


@pytest.mark.parametrize("age", [290, -290])
def test_a_clock_may_differ_by_five_minutes(age: int, receiver: Receiver) -> None:
    assert post(payload("message.sent"), age=age).status_code == 200


@pytest.mark.parametrize("age", [310, -310, 10**6, -(10**6)])
def test_an_old_or_early_request_is_refused(age: int, receiver: Receiver) -> None:
    assert refused(post(payload("message.sent"), age=age), receiver)


@pytest.mark.parametrize(
    "at", ["1 ", "-1", "+1", "1_0", "0x1", "1.5", "nan", "९", "1" * 5000, "t", ","]
)
def test_an_odd_signed_timestamp_is_refused(at: str, receiver: Receiver) -> None:
    body = encode(payload("message.sent"))
    # As the header's bytes: what is no Latin-1 comes as its UTF-8 bytes.
    headers = {
        name: value.encode().decode("latin-1")
        for name, value in signed(body, at=at).items()
    }
    assert refused(send(body, headers), receiver)


@pytest.mark.parametrize(
    "signature",
    [
        "",
        " ",
        "nonsense",
        "t={at}",
        "v1={digest}",
        "t={at},v1=",
        "t={at},v1=zz",
        "t={at},v1=é{digest}",
        "t={at},v1=\u00b2{digest}",
        "t={at},v0={digest}",
        "t={at},t={at},v1={digest}",
        "t={at},v1={digest}0",
        "t={at},v1={digest},t={at},v1={digest}",
        "sha256={digest}",
        "=" * 10_000,
    ],
)
def test_an_odd_signature_is_refused(signature: str, receiver: Receiver) -> None:
    body, at = encode(payload("message.sent")), str(int(time.time()))
    value = signature.format(at=at, digest=digest(body, at))
    headers = signed(body) | {
        "X-Lettermint-Signature": value,
        "X-Lettermint-Delivery": at,
    }
    assert refused(send(body, headers), receiver)


@pytest.mark.parametrize("name", ["X-Lettermint-Signature", "X-Lettermint-Delivery"])
def test_a_missing_header_is_refused(name: str, receiver: Receiver) -> None:
    body = encode(payload("message.sent"))
    headers = signed(body)
    del headers[name]
    assert refused(send(body, headers), receiver)


def test_a_delivery_header_that_differs_from_the_signed_time_is_refused(
    receiver: Receiver,
) -> None:
    body = encode(payload("message.sent"))
    headers = signed(body) | {"X-Lettermint-Delivery": str(int(time.time()) - 1)}
    assert refused(send(body, headers), receiver)


@pytest.mark.parametrize("anymail", [{}, {"LETTERMINT_SIGNING_SECRET": None}])
@pytest.mark.parametrize("url", [TRACKING, INBOUND])
def test_without_a_secret_nothing_is_accepted(
    anymail: dict[str, Any], url: str, settings: Any, receiver: Receiver
) -> None:
    settings.ANYMAIL = anymail
    assert refused(post(payload("message.sent"), url=url), receiver, status=403)


@pytest.mark.parametrize(
    ("secret", "status"), [("", 403), ([], 403), ([""], 500), ([SECRET, ""], 500)]
)
def test_a_signature_with_an_empty_secret_never_counts(
    secret: object, status: int, settings: Any, receiver: Receiver
) -> None:
    configure(settings, signing_secret=secret)
    body, at = encode(payload("message.sent")), str(int(time.time()))
    headers = signed(body) | {
        "X-Lettermint-Signature": f"t={at},v1={digest(body, at, '')}",
        "X-Lettermint-Delivery": at,
    }
    assert send(body, headers).status_code == status
    assert receiver.events == []


def view_with_own_secret(secret: object) -> Callable[..., HttpResponseBase]:
    return LettermintTrackingWebhookView.as_view(signing_secret=secret)


def request_signed_with(secret: str) -> Any:
    body = encode(payload("message.sent"))
    return RequestFactory().generic(
        "POST", "/", body, "application/json", headers=signed(body, secret=secret)
    )


@pytest.mark.parametrize("own", ["whsec_own", ["whsec_own", "whsec_older"]])
def test_a_url_can_have_its_own_secret(own: object, receiver: Receiver) -> None:
    view = view_with_own_secret(own)
    assert view(request_signed_with("whsec_own")).status_code == 200
    assert view(request_signed_with(SECRET)).status_code == 400


@pytest.mark.parametrize("own", [None, "", []])
def test_a_url_whose_own_secret_is_none_accepts_nothing(
    own: object, receiver: Receiver
) -> None:
    view = view_with_own_secret(own)
    assert view(request_signed_with(SECRET)).status_code == 403


def test_a_views_own_secret_is_not_shown(receiver: Receiver) -> None:
    view: Any = view_with_own_secret("whsec_own")
    assert "whsec_own" not in repr(view.view_initkwargs)


def test_an_odd_secret_of_a_url_is_an_error_at_once() -> None:
    with pytest.raises(AnymailConfigurationError, match="signing_secret"):
        view_with_own_secret(7)


def class_with(secret: object) -> type[LettermintTrackingWebhookView]:
    class Own(LettermintTrackingWebhookView):
        signing_secret = secret

    return Own


def property_with(secret: object) -> type[LettermintTrackingWebhookView]:
    class Own(LettermintTrackingWebhookView):
        @property
        def signing_secret(self) -> object:  # type: ignore[override]
            return secret

    return Own


def setup_with(secret: object) -> type[LettermintTrackingWebhookView]:
    class Own(LettermintTrackingWebhookView):
        def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
            super().setup(request, *args, **kwargs)
            self.signing_secret = secret

    return Own


PLACES = [class_with, property_with, setup_with]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "own",
    [
        "whsec_own",
        ["whsec_own"],
        ("whsec_older", "whsec_own"),
        Secret("whsec_own"),
        lazystr("whsec_own"),
        SimpleLazyObject(lambda: "whsec_own"),
        [lazystr("whsec_own"), "whsec_older"],
    ],
    ids=["text", "list", "tuple", "wrapped", "lazy text", "lazy", "lazy in a list"],
)
def test_a_view_may_hold_its_secret_wherever_a_view_can(
    place: Callable[[object], type[LettermintWebhookView]],
    own: object,
    receiver: Receiver,
) -> None:
    view = place(own).as_view()
    assert view(request_signed_with("whsec_own")).status_code == 200
    assert view(request_signed_with(SECRET)).status_code == 400
    assert len(receiver.events) == 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("own", ["", [], ()], ids=repr)
def test_a_view_whose_secret_is_empty_accepts_nothing(
    place: Callable[[object], type[LettermintWebhookView]],
    own: object,
    receiver: Receiver,
) -> None:
    view = place(own).as_view()
    for secret in (SECRET, ""):
        assert view(request_signed_with(secret)).status_code == 403
    assert receiver.events == []


@pytest.mark.parametrize("place", [property_with, setup_with])
@pytest.mark.parametrize("own", [None, SimpleLazyObject(lambda: None)], ids=repr)
def test_a_request_without_a_secret_of_its_own_does_not_use_that_of_the_settings(
    place: Callable[[object], type[LettermintWebhookView]],
    own: object,
    receiver: Receiver,
) -> None:
    view = place(own).as_view()
    assert view(request_signed_with(SECRET)).status_code == 403


def test_a_class_without_a_secret_of_its_own_uses_that_of_the_settings(
    receiver: Receiver,
) -> None:
    assert class_with(None).as_view()(request_signed_with(SECRET)).status_code == 200


def test_the_secret_may_depend_on_the_url(receiver: Receiver) -> None:
    class OfShop(LettermintTrackingWebhookView):
        def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
            super().setup(request, *args, **kwargs)
            self.signing_secret = {"a": "whsec_a", "b": "whsec_b"}.get(kwargs["shop"])

    view = OfShop.as_view()
    for shop, status in {"a": 200, "b": 400, "c": 403}.items():
        assert view(request_signed_with("whsec_a"), shop=shop).status_code == status


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("own", [7, ["whsec_own", ""], "two words"], ids=repr)
def test_an_odd_secret_of_a_view_is_an_error_at_each_event(
    place: Callable[[object], type[LettermintWebhookView]],
    own: object,
    receiver: Receiver,
) -> None:
    with pytest.raises(AnymailConfigurationError, match="signing_secret"):
        place(own).as_view()(request_signed_with(SECRET))
    assert receiver.events == []


def variables_of(error: BaseException) -> str:
    """Return what an error tracker records: variables, and attributes of views."""
    found = []
    trace = error.__traceback__
    while trace:
        if "/tests/" not in trace.tb_frame.f_code.co_filename:
            for value in trace.tb_frame.f_locals.values():
                found.append(repr(value))
                if not isinstance(value, type):
                    found.append(repr(getattr(value, "__dict__", "")))
        trace = trace.tb_next
    return "".join(found)


@pytest.mark.parametrize("place", [*PLACES, None])
@pytest.mark.parametrize("dedupe", [True, "broken"])
def test_the_secret_of_a_view_stands_in_no_frame(
    place: Callable[[object], type[LettermintWebhookView]] | None,
    dedupe: object,
    settings: Any,
    receiver: Receiver,
) -> None:
    if place is None:
        view = view_with_own_secret("whsec_own")
    else:
        view = place("whsec_own").as_view()
    configure(settings, webhook_dedupe=dedupe)
    receiver.action = fail
    with pytest.raises((ReceiverFailed, AnymailConfigurationError)) as caught:
        view(request_signed_with("whsec_own"))
    assert "whsec_own" not in variables_of(caught.value)


def test_basic_auth_is_asked_for_besides_the_signature_if_configured(
    settings: Any, receiver: Receiver
) -> None:
    settings.ANYMAIL |= {"WEBHOOK_SECRET": "user:pass"}
    body = encode(payload("message.sent"))
    assert refused(send(body, signed(body)), receiver)
    right = signed(body) | {"Authorization": "Basic dXNlcjpwYXNz"}
    assert send(body, right).status_code == 200
    assert len(receiver.events) == 1


# --- malformed requests ---


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        '{"id":"1"}'.encode("utf-16"),
        b'{"id":"\xff"}',
        b"{}",
        b'{"id":"1","event":"message.sent"}',
        b"[" * 100_000,
        b'{"id":' * 50_000,
        b'{"id":"1","n":' + b"9" * 5000 + b"}",
        b"\x1f\x8b\x08\x00gzip",
    ],
    ids=lambda body: repr(body[:16]),
)
@pytest.mark.parametrize("url", [TRACKING, INBOUND])
def test_a_malformed_body_is_refused(body: bytes, url: str, receiver: Receiver) -> None:
    assert refused(post(body, url=url), receiver)


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"']
)
def test_a_value_that_receivers_could_not_store_is_refused(
    value: str, receiver: Receiver
) -> None:
    content = encode(payload("message.sent")).replace(b'"spring"', value.encode())
    assert refused(post(content), receiver)


def nested(depth: int, opening: str, closing: str) -> bytes:
    """Return an event whose values go as deep, counting its own two objects."""
    inner = opening * (depth - 2) + "0" + closing * (depth - 2)
    content = payload("message.sent", extra="HERE")
    return encode(content).replace(b'"HERE"', inner.encode())


OBJECTS, ARRAYS = ('{"a":', "}"), ("[", "]")


@pytest.mark.parametrize("depth", [65, 900, 9000])
@pytest.mark.parametrize("brackets", [OBJECTS, ARRAYS], ids=str)
def test_values_too_deep_for_receivers_are_refused(
    depth: int, brackets: tuple[str, str], receiver: Receiver
) -> None:
    assert refused(post(nested(depth, *brackets)), receiver)


@pytest.mark.parametrize("brackets", [OBJECTS, ARRAYS], ids=str)
def test_values_may_be_as_deep_as_the_limit(
    brackets: tuple[str, str], receiver: Receiver
) -> None:
    assert post(nested(64, *brackets)).status_code == 200
    assert len(receiver.events) == 1


@pytest.mark.parametrize("field", ["id", "event", "timestamp", "data"])
def test_an_envelope_without_one_of_its_fields_is_refused(
    field: str, receiver: Receiver
) -> None:
    content = payload("message.sent")
    del content[field]
    assert refused(post(content), receiver)


def test_a_broken_attachment_is_refused(receiver: Receiver) -> None:
    content = payload("message.inbound", attachments=[{"content": "a"}])
    assert refused(post(content, url=INBOUND), receiver)


def test_a_compressed_body_is_not_unpacked(receiver: Receiver) -> None:
    body = b"\x1f\x8b\x08\x00" + b"\x00" * 100
    headers = signed(body) | {"Content-Encoding": "gzip"}
    assert refused(send(body, headers), receiver)


def test_no_detail_is_told_even_when_debugging(
    settings: Any, receiver: Receiver
) -> None:
    settings.DEBUG = True
    assert refused(post(payload("message.sent"), secret="whsec_other"), receiver)


def test_the_log_tells_the_reason_and_no_secret(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="django_lettermint"):
        post(payload("message.sent"), secret="whsec_other")
    assert "Lettermint webhook refused: signature_mismatch" in caplog.messages
    assert SECRET not in caplog.text


# --- size ---


def test_a_body_that_is_declared_too_large_is_not_read(receiver: Receiver) -> None:
    size = LettermintTrackingWebhookView.max_body_size + 1
    response = send(b"{}", signed(b"{}"), CONTENT_LENGTH=str(size))
    assert refused(response, receiver, status=413)


def test_a_body_of_undeclared_size_is_read_up_to_the_limit_only(
    receiver: Receiver,
) -> None:
    stream = BytesIO(b" " * (LettermintTrackingWebhookView.max_body_size + 100))
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    response = LettermintTrackingWebhookView.as_view()(ASGIRequest(scope, stream))
    assert response.status_code == 413
    assert stream.tell() == LettermintTrackingWebhookView.max_body_size + 1


@pytest.mark.parametrize("length", ["1,1", "x", "9" * 5000])
def test_an_odd_content_length_is_refused(length: str, receiver: Receiver) -> None:
    body = encode(payload("message.sent"))
    response = send(body, signed(body), CONTENT_LENGTH=length)
    assert refused(response, receiver)


class BrokenPipe:
    """A connection that fails while the body is read."""

    def read(self, size: int = -1) -> bytes:
        raise OSError("connection reset")

    readline = read


def test_a_connection_that_breaks_is_refused(receiver: Receiver) -> None:
    environ: dict[str, Any] = {"wsgi.input": BrokenPipe(), "CONTENT_LENGTH": "2"}
    assert refused(send(b"{}", signed(b"{}"), **environ), receiver)


def test_a_mail_larger_than_djangos_own_limit_is_received(
    settings: Any, receiver: Receiver
) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    content = payload("message.inbound", body={"text": "x" * 100_000, "html": None})
    assert post(content, url=INBOUND).status_code == 200
    [event] = receiver.events
    assert len(event.message.text) == 100_000


def test_a_url_can_have_its_own_size_limit(receiver: Receiver) -> None:
    view = LettermintInboundWebhookView.as_view(max_body_size=100)
    assert view(request_signed_with(SECRET)).status_code == 413


# --- repeated deliveries ---


def test_a_repeated_delivery_is_accepted_without_a_signal(receiver: Receiver) -> None:
    assert post(payload("message.sent")).status_code == 200
    assert post(payload("message.sent"), age=5).status_code == 200
    assert len(receiver.events) == 1


def test_another_event_is_another_event(receiver: Receiver) -> None:
    for number in range(3):
        post(payload("message.sent") | {"id": f"event-{number}"})
    assert receiver.ids() == ["event-0", "event-1", "event-2"]


def test_a_forged_request_does_not_use_up_an_id(receiver: Receiver) -> None:
    post(payload("message.sent"), secret="whsec_other")
    assert post(payload("message.sent")).status_code == 200
    assert len(receiver.events) == 1


def test_deduplication_can_be_switched_off(settings: Any, receiver: Receiver) -> None:
    configure(settings, webhook_dedupe=False)
    assert post(payload("message.sent")).status_code == 200
    assert post(payload("message.sent")).status_code == 200
    assert len(receiver.events) == 2


class ReceiverFailed(Exception):
    pass


def fail() -> None:
    raise ReceiverFailed


def test_a_failing_receiver_gets_the_event_again(receiver: Receiver) -> None:
    receiver.action = fail
    assert post(payload("message.sent")).status_code == 500
    receiver.action = lambda: None
    assert post(payload("message.sent")).status_code == 200
    assert post(payload("message.sent")).status_code == 200
    assert len(receiver.events) == 2


def test_a_receivers_error_reaches_the_site(receiver: Receiver) -> None:
    receiver.action = fail
    with pytest.raises(ReceiverFailed):
        LettermintTrackingWebhookView.as_view()(request_signed_with(SECRET))


def test_an_interrupted_receiver_gets_the_event_again(receiver: Receiver) -> None:
    receiver.action = sys.exit
    with pytest.raises(SystemExit):
        LettermintTrackingWebhookView.as_view()(request_signed_with(SECRET))
    receiver.action = lambda: None
    assert post(payload("message.sent")).status_code == 200
    assert len(receiver.events) == 2


def test_a_copy_that_arrives_meanwhile_is_asked_to_come_again(
    receiver: Receiver,
) -> None:
    copies: list[HttpResponse] = []
    receiver.action = lambda: copies.append(post(payload("message.sent")))
    assert post(payload("message.sent")).status_code == 200
    assert [copy.status_code for copy in copies] == [503]
    assert copies[0]["Retry-After"] == "60"
    assert len(receiver.events) == 1


class MissesTogether(LocMemCache):
    """Lets all who look for a key see that it is missing before one can set it."""

    everyone = threading.Barrier(20)

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        found = super().get(key, default, version)
        if found is None:
            self.everyone.wait(timeout=30)
        return found


@pytest.mark.parametrize("backend", [LocMemCache, MissesTogether])
def test_of_twenty_copies_at_once_one_runs_the_receivers(
    backend: type, settings: Any, receiver: Receiver
) -> None:
    path = f"{backend.__module__}.{backend.__qualname__}"
    settings.CACHES = {"default": settings.CACHES["default"] | {"BACKEND": path}}
    together = threading.Barrier(20)
    body = encode(payload("message.sent"))

    def deliver(_: int) -> int:
        together.wait(timeout=30)
        return send(body, signed(body)).status_code

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(deliver, range(20)))
    assert len(receiver.events) == 1
    assert 200 in statuses
    assert set(statuses) <= {200, 503}


def test_an_event_is_remembered_for_longer_than_lettermint_tries_again() -> None:
    assert CLAIM_SECONDS < 3600 < 14 * 3600 < REMEMBER_SECONDS


@pytest.fixture
def _atomic_requests(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", value=True)


@pytest.mark.usefixtures("_atomic_requests")
def test_an_event_whose_request_is_rolled_back_is_not_done(receiver: Receiver) -> None:
    receiver.action = partial(transaction.set_rollback, rollback=True)
    assert post(payload("message.sent")).status_code == 200
    receiver.action = lambda: None
    assert post(payload("message.sent")).status_code == 503
    cache.clear()  # as the claim runs out
    assert post(payload("message.sent")).status_code == 200
    assert len(receiver.events) == 2


@pytest.mark.usefixtures("_atomic_requests")
def test_an_event_whose_request_is_committed_is_done(receiver: Receiver) -> None:
    assert post(payload("message.sent")).status_code == 200
    assert post(payload("message.sent")).status_code == 200
    assert len(receiver.events) == 1


@pytest.mark.django_db
def test_a_repeated_delivery_is_accepted_in_a_test_that_never_commits(
    receiver: Receiver,
) -> None:
    assert post(payload("message.sent")).status_code == 200
    assert post(payload("message.sent")).status_code == 200
    assert len(receiver.events) == 1


# --- without the SDK ---


@pytest.fixture
def _without_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lettermint.webhook", None)
    monkeypatch.delitem(
        sys.modules, "django_lettermint.webhooks.signature", raising=False
    )


@pytest.mark.usefixtures("_without_sdk")
def test_a_missing_sdk_is_reported_when_the_url_is_made() -> None:
    remedy = r'pip install "django-lettermint-smtp\[webhooks\]"'
    with pytest.raises(AnymailConfigurationError, match=remedy):
        LettermintTrackingWebhookView.as_view()


def test_the_package_imports_no_sdk() -> None:
    program = """
import sys
import django_lettermint.webhooks
sys.exit("lettermint" in sys.modules or "httpx" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_view_must_say_what_it_sends() -> None:
    with pytest.raises(NotImplementedError):
        LettermintWebhookView.as_view(max_body_size=2**20)(request_signed_with(SECRET))


# --- the documentation ---


def test_the_documented_receiver_works(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    names: dict[str, Any] = {"__name__": "shop.receivers"}
    shown = snippet(DOCS / "webhooks.md", "@receiver(tracking)")
    with receivers_forgotten(), caplog.at_level(logging.INFO, logger="shop.receivers"):
        kept = shown.run(names)
        for number, event_type in enumerate(sorted(DATA)):
            url = INBOUND if event_type == "message.inbound" else TRACKING
            content = payload(event_type) | {"id": str(number)}
            assert post(content, url=url).status_code == 200
    assert {"on_tracking", "on_inbound"} <= kept.keys()
    assert f"{OUR_ID} bounced: User unknown" in caplog.text
    assert json.dumps("Grüße", ensure_ascii=False).strip('"') in caplog.text


@pytest.mark.parametrize("place", ["headers", "from"])
@pytest.mark.parametrize(
    "sender",
    [
        "[Shop] News <n@example.com>",
        "Last, First <a@example.com>",
        "MAILER-DAEMON (Mail Delivery System)",
        *("<>", "a@", "a@[", '"'),
    ],
)
def test_the_documented_receiver_accepts_any_sender(place: str, sender: str) -> None:
    values = {
        "headers": [{"name": "From", "value": sender}],
        "from": {"email": sender, "name": sender},
    }
    shown = snippet(DOCS / "webhooks.md", "@receiver(tracking)")
    with receivers_forgotten():
        kept = shown.run({"__name__": "shop.receivers"})
        content = payload("message.inbound", **{"headers": [], place: values[place]})
        assert post(content, url=INBOUND).status_code == 200
    assert "on_inbound" in kept
