"""Webhooks whose URL names a tenant are verified by that tenant's secret."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from anymail.signals import inbound, tracking
from django.test import Client
from django.urls import reverse

from django_lettermint.testing import sign

from .payloads import encode, payload

if TYPE_CHECKING:
    from django.http import HttpResponse

KNOWN: dict[str, Mapping[str, object]] = {
    "acme": {"signing_secret": "whsec_acme"},
    "globex": {"signing_secret": ["whsec_globex", "whsec_new"]},
    "initech": {"api_token": "lm_initech"},
    "hooli": {"signing_secret": ""},
    "odd": {"signing_secret": 5},
    "müller": {"signing_secret": "whsec_muller"},
    "5": {"signing_secret": "whsec_5"},
    "away": {},
}


def tenants(name: str) -> Mapping[str, object]:
    if name == "away":
        raise ConnectionError("the database is away")
    return KNOWN[name]


@pytest.fixture(autouse=True)
def _project(settings: Any, request: pytest.FixtureRequest) -> None:
    settings.ROOT_URLCONF = "tests.webhooks.urls_tenants"
    settings.LETTERMINT_SIGNING_SECRET = "whsec_settings"
    settings.LETTERMINT_TENANTS = tenants
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "LOCATION": request.node.nodeid,
        }
    }


@pytest.fixture
def events() -> Iterator[list[Any]]:
    found: list[Any] = []

    def receive(sender: type, event: Any, esp_name: str, **others: object) -> None:
        found.append(event)

    for signal in (tracking, inbound):
        signal.connect(receive)
    yield found
    for signal in (tracking, inbound):
        signal.disconnect(receive)


def url(tenant: str, kind: str = "tracking", prefix: str = "of") -> str:
    return f"/{prefix}/{tenant}/lettermint/{kind}/"


def post(
    where: str, secret: str, event: str = "message.sent", **changes: Any
) -> HttpResponse:
    body = encode(payload(event) | changes)
    now = int(time.time())
    headers = {
        "X-Lettermint-Signature": sign(body, secret, now),
        "X-Lettermint-Delivery": f"{now}",
    }
    client = Client(raise_request_exception=False)
    return client.post(  # type: ignore[return-value]
        where, body, "application/json", headers=headers
    )


@pytest.mark.parametrize(
    ("tenant", "secret"),
    [
        ("acme", "whsec_acme"),
        ("globex", "whsec_globex"),
        ("globex", "whsec_new"),
        ("müller", "whsec_muller"),
    ],
)
def test_an_event_is_verified_by_the_secret_of_its_tenant(
    tenant: str, secret: str, events: list[Any]
) -> None:
    assert post(url(tenant), secret).status_code == 200
    received = post(url(tenant, "inbound"), secret, "message.inbound", id="2")
    assert received.status_code == 200

    assert [each.tenant for each in events] == [tenant, tenant]


def test_a_tenant_may_be_of_any_path_converter(events: list[Any]) -> None:
    assert post(url("5", prefix="number"), "whsec_5").status_code == 200
    assert [each.tenant for each in events] == ["5"]


def test_the_urls_reverse_with_the_tenant() -> None:
    assert (
        reverse("lettermint_tracking_webhook", kwargs={"tenant": "acme"})
        == "/of/acme/lettermint/tracking/"
    )


def test_without_a_tenant_in_the_url_the_settings_have_the_secret(
    events: list[Any],
) -> None:
    assert post("/lettermint/tracking/", "whsec_settings").status_code == 200
    assert post("/lettermint/tracking/", "whsec_acme").status_code == 400

    assert [each.tenant for each in events] == [None]


@pytest.mark.parametrize(
    ("tenant", "secret"),
    [
        ("acme", "whsec_globex"),
        ("acme", "whsec_settings"),
        ("nobody", "whsec_settings"),
        ("nobody", ""),
        ("initech", "whsec_settings"),
        ("initech", ""),
        ("hooli", ""),
        ("odd", "5"),
        ("a" * 300, "whsec_settings"),
        (" acme", "whsec_acme"),
    ],
)
def test_a_refusal_does_not_tell_which_tenants_there_are(
    tenant: str, secret: str, events: list[Any]
) -> None:
    response = post(url(tenant), secret)

    expected = post(url("acme"), "whsec_wrong")
    assert response.status_code == expected.status_code == 400
    assert (response.content, [*response.headers]) == (b"", [*expected.headers])
    assert events == []


def test_without_a_resolver_each_tenant_is_unknown(
    settings: Any, events: list[Any]
) -> None:
    settings.LETTERMINT_TENANTS = None

    assert post(url("acme"), "whsec_settings").status_code == 400
    assert events == []


def test_the_log_tells_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    post(url("nobody"), "whsec_settings")
    post(url("odd"), "whsec_settings")

    assert "tenant 'nobody': the function in the option `tenants`" in caplog.text
    assert "tenants('odd')['signing_secret'] must be a string" in caplog.text
    assert "whsec_" not in caplog.text


def test_a_resolver_that_fails_lets_lettermint_come_again(events: list[Any]) -> None:
    assert post(url("away"), "whsec_settings").status_code == 500
    with pytest.raises(AnymailConfigurationError, match=r"cannot be looked up now"):
        Client().post(url("away"), b"{}", "application/json")
    assert events == []


def test_an_event_of_each_tenant_runs_once(events: list[Any]) -> None:
    for _ in range(2):
        post(url("acme"), "whsec_acme")
        post(url("globex"), "whsec_globex")
        post("/lettermint/tracking/", "whsec_settings")

    assert [each.tenant for each in events] == ["acme", "globex", None]
    assert len({each.event_id for each in events}) == 1


def test_deduplication_may_be_off_for_one_tenant(
    settings: Any, events: list[Any]
) -> None:
    secret = {"signing_secret": "whsec_acme"}
    settings.LETTERMINT_TENANTS = lambda name: {**secret, "webhook_dedupe": False}
    for _ in range(2):
        post(url("acme"), "whsec_acme")

    assert len(events) == 2


def test_a_secret_of_the_view_itself_comes_first(events: list[Any]) -> None:
    assert post("/own/nobody/", "whsec_own").status_code == 200
    assert post("/own/acme/", "whsec_acme").status_code == 400

    assert [each.tenant for each in events] == ["nobody"]
