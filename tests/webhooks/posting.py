"""Signed requests through Django's test client, and what reaches the receivers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from django.test import Client, RequestFactory

from django_lettermint.testing import sign
from django_lettermint.webhooks import LettermintWebhookView
from tests.webhooks.payloads import encode, payload

if TYPE_CHECKING:
    from anymail.signals import AnymailEvent
    from django.http import HttpResponse

SECRET = "whsec_current"
TRACKING, INBOUND = "/anymail/lettermint/tracking/", "/anymail/lettermint/inbound/"


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


def signed(body: bytes, secret: str = SECRET, *, age: int = 0) -> dict[str, str]:
    """Return the headers that Lettermint sends with `body`."""
    now = int(time.time()) - age
    return {
        "X-Lettermint-Signature": sign(body, secret, now),
        "X-Lettermint-Delivery": str(now),
    }


def send(
    body: bytes, headers: Mapping[str, str], *, url: str = TRACKING, **extra: Any
) -> HttpResponse:
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    method = extra.pop("method", "POST")
    return client.generic(  # type: ignore[return-value]
        method, url, body, "application/json", headers=dict(headers), **extra
    )


def post(
    content: object, secret: str = SECRET, *, url: str = TRACKING, age: int = 0
) -> HttpResponse:
    body = content if isinstance(content, bytes) else encode(content)
    return send(body, signed(body, secret, age=age), url=url)


def request(secret: str = SECRET) -> Any:
    """Return a signed request, for a view that no URL leads to."""
    body = encode(payload("message.sent"))
    return RequestFactory().generic(
        "POST", "/", body, "application/json", headers=signed(body, secret)
    )


def configure(settings: Any, **options: object) -> None:
    named = {f"LETTERMINT_{name.upper()}": value for name, value in options.items()}
    settings.ANYMAIL = {"LETTERMINT_SIGNING_SECRET": SECRET} | named
