"""Webhooks whose URL names a tenant are verified by that tenant's secret."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from django.test import Client

from tests.webhooks.payloads import payload
from tests.webhooks.posting import Receiver, post

SENT = payload("message.sent")
KNOWN: dict[str, Mapping[str, object]] = {
    "acme": {"signing_secret": "whsec_acme"},
    "globex": {"signing_secret": ["whsec_globex", "whsec_new"]},
    "initech": {"api_token": "lm_initech"},
    "hooli": {"signing_secret": ""},
    "odd": {"signing_secret": 5},
    "müller": {"signing_secret": "whsec_muller"},
    "5": {"signing_secret": "whsec_5"},
}


def tenants(name: str) -> Mapping[str, object]:
    if name == "away":
        raise ConnectionError("the database is away")
    return KNOWN[name]


@pytest.fixture(autouse=True)
def _tenants(settings: Any, _project: None) -> None:
    settings.ROOT_URLCONF = "tests.webhooks.urls_tenants"
    settings.ANYMAIL = {}
    settings.LETTERMINT_SIGNING_SECRET = "whsec_settings"
    settings.LETTERMINT_TENANTS = tenants


def url(tenant: str, kind: str = "tracking", prefix: str = "of") -> str:
    return f"/{prefix}/{tenant}/lettermint/{kind}/"


@pytest.mark.parametrize(
    ("prefix", "tenant", "secret"),
    [
        ("of", "acme", "whsec_acme"),
        ("of", "globex", "whsec_globex"),
        ("of", "globex", "whsec_new"),
        ("of", "müller", "whsec_muller"),
        ("number", "5", "whsec_5"),
    ],
)
def test_an_event_is_verified_by_the_secret_of_its_tenant(
    prefix: str, tenant: str, secret: str, receiver: Receiver
) -> None:
    received = payload("message.inbound") | {"id": "2"}
    assert post(SENT, secret, url=url(tenant, "tracking", prefix)).status_code == 200
    assert post(received, secret, url=url(tenant, "inbound", prefix)).status_code == 200

    assert [each.tenant for each in receiver.events] == [tenant, tenant]


@pytest.mark.parametrize(
    ("tenant", "secret"),
    [
        ("acme", "whsec_globex"),
        ("acme", "whsec_settings"),
        ("nobody", "whsec_settings"),
        ("initech", "whsec_settings"),
        ("initech", ""),
        ("hooli", ""),
        ("odd", "5"),
        ("a" * 300, "whsec_settings"),
        (" acme", "whsec_acme"),
    ],
)
def test_a_refusal_does_not_reveal_which_tenants_exist(
    tenant: str, secret: str, receiver: Receiver
) -> None:
    response = post(SENT, secret, url=url(tenant))

    expected = post(SENT, "whsec_wrong", url=url("acme"))
    assert response.status_code == expected.status_code == 400
    assert (response.content, [*response.headers]) == (b"", [*expected.headers])
    assert receiver.events == []


def test_the_log_gives_the_reason_and_no_secret(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for tenant in ("nobody", "odd"):
        post(SENT, "whsec_settings", url=url(tenant))
    settings.LETTERMINT_TENANTS = None
    post(SENT, "whsec_settings", url=url("acme"))

    assert "tenant 'nobody': the function in the option `tenants`" in caplog.text
    assert "tenants('odd')['signing_secret'] must be a string" in caplog.text
    assert "tenant 'acme'" in caplog.text
    assert "whsec_" not in caplog.text


def test_an_event_is_kept_while_the_resolver_fails(receiver: Receiver) -> None:
    assert post(SENT, "whsec_settings", url=url("away")).status_code == 500
    with pytest.raises(AnymailConfigurationError, match=r"cannot be looked up now"):
        Client().post(url("away"), b"{}", "application/json")
    assert receiver.events == []


@pytest.mark.parametrize("dedupe", [True, False])
def test_an_event_of_each_tenant_runs_once(
    settings: Any, receiver: Receiver, *, dedupe: bool
) -> None:
    settings.LETTERMINT_TENANTS = lambda name: {**KNOWN[name], "webhook_dedupe": dedupe}
    for _ in range(2):
        post(SENT, "whsec_acme", url=url("acme"))
        post(SENT, "whsec_globex", url=url("globex"))
        post(SENT, "whsec_settings", url="/lettermint/tracking/")

    told = [each.tenant for each in receiver.events]
    assert told == ["acme", "globex", None] + ([] if dedupe else ["acme", "globex"])


def test_a_secret_of_the_view_takes_precedence(receiver: Receiver) -> None:
    assert post(SENT, "whsec_own", url="/own/nobody/").status_code == 200
    assert post(SENT, "whsec_acme", url="/own/acme/").status_code == 400

    assert [each.tenant for each in receiver.events] == ["nobody"]
