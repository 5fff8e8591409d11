"""A queued message carries the name of its tenant; the worker looks up the token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from django.test import override_settings
from django.utils import timezone

from django_lettermint import worker
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import IDEMPOTENCY_KEY_TTL
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.message import extras
from django_lettermint.results import Outcome
from django_lettermint.testing import Relay
from tests.sending import listening, mail
from tests.tasks.queueing import Queue

TOKEN, OWN, NEW = "lm_of_the_settings", "lm_of_acme", "lm_of_acme_anew"

Tenants = dict[str, dict[str, object]]


def away(name: str) -> dict[str, object]:
    raise ConnectionError


@pytest.fixture
def tenants() -> Tenants:
    return {"acme": {"api_token": OWN}}


@pytest.fixture
def relay(tenants: Tenants) -> Iterator[Relay]:
    with Relay(TOKEN, other_tokens=[OWN, NEW]) as running:
        settings = running.settings(tenants=tenants.__getitem__, retries=0)
        with override_settings(ANYMAIL=settings):
            yield running


@pytest.fixture
def queue(relay: Relay) -> Iterator[Queue]:
    with listening() as heard:
        yield Queue(heard)


def send(queue: Queue, tenant: str | None = "acme") -> None:
    with extras(tenant=tenant):
        queue.send(mail())


def tokens(relay: Relay) -> list[str]:
    return [each.token for each in relay.messages]


def test_the_worker_looks_up_the_token_of_the_tenant(
    relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    send(queue)
    assert OWN not in json.dumps(queue.form)
    # Releases that know no tenants read version 1 only, and so refuse it.
    assert [each["envelope"]["version"] for each in queue.form["transactions"]] == [2]
    tenants["acme"] = {"api_token": NEW}
    with extras(tenant="another"):
        assert queue.run() == "sent"
    assert tokens(relay) == [NEW]
    [(received, _)] = queue.sent
    assert received.tenant == "acme"  # type: ignore[attr-defined]


def test_a_message_without_a_tenant_is_sent_under_the_token_of_the_settings(
    relay: Relay, queue: Queue
) -> None:
    send(queue, None)
    assert "tenant" not in json.dumps(queue.form)
    assert [each["envelope"]["version"] for each in queue.form["transactions"]] == [1]
    with extras(tenant="acme"):
        assert queue.run() == "sent"
    assert tokens(relay) == [TOKEN]


def test_a_list_asks_the_resolver_once(
    relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    asked: list[str] = []

    def resolver(name: str) -> dict[str, object]:
        asked.append(name)
        return tenants[name]

    with (
        override_settings(ANYMAIL=relay.settings(tenants=resolver)),
        extras(tenant="acme"),
    ):
        queue.send(mail(), mail())
    assert asked == ["acme"]


def test_a_tenant_that_is_gone_ends_its_message_but_changes_nothing_that_has_ended(
    relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    send(queue)
    send(queue)
    [ended] = queue.tasks[1].args[0]["transactions"]
    ended |= {
        "outcome": "sent",
        "recipients": ["bob@example.org"],
        "phase": "commit",
        "replies": {"bob@example.org": [250, "ok"]},
        "reply": [250, "ok"],
        "failure": None,
    }
    tenants.clear()
    assert queue.run_all() == ["not_sent", "sent"]
    [(received, result, error)] = queue.failed
    assert result.outcome is Outcome.NOT_SENT
    assert isinstance(error, LettermintInvalidMessage)
    assert received.tenant == "acme"  # type: ignore[attr-defined]
    assert relay.statistics.connections == 0


@pytest.mark.parametrize(
    ("resolver", "problem"), [(away, r"\(ConnectionError\)"), (None, "`tenants`")]
)
def test_a_worker_that_cannot_look_up_the_tenant_leaves_the_task(
    relay: Relay, queue: Queue, resolver: object, problem: str
) -> None:
    send(queue)
    form = queue.form
    with (
        override_settings(ANYMAIL=relay.settings(tenants=resolver)),
        pytest.raises(LettermintInvalidMessage, match=problem),
    ):
        queue.run()
    assert queue.failed == []
    assert worker.run(form, None)["outcome"] == "sent"


@pytest.mark.parametrize(
    "names", [[""], ["a\nb"], [5], [["acme"]], [None], ["acme", "another"]]
)
def test_a_form_with_an_odd_tenant_or_with_two_is_refused(
    names: list[object], relay: Relay, queue: Queue
) -> None:
    send(queue)
    [own] = queue.form["transactions"]
    queue.form["transactions"] = [
        {**own, "envelope": {**own["envelope"], "tenant": name}} for name in names
    ]
    with pytest.raises((ValueError, AnymailConfigurationError)):
        queue.run()
    assert relay.statistics.connections == 0


def test_a_message_that_is_put_back_keeps_its_tenant(
    relay: Relay, queue: Queue
) -> None:
    send(queue)
    with relay.outage():
        assert queue.run() == "put back"
    assert queue.run() == "sent"
    assert tokens(relay) == [OWN]


def test_the_time_in_the_queue_ends_before_the_tenants_deadline(
    queue: Queue, tenants: Tenants
) -> None:
    tenants["acme"]["deadline"] = IDEMPOTENCY_KEY_TTL - 60
    send(queue)
    assert queue.form["give_up_at"] - timezone.now().timestamp() < 61


@pytest.mark.parametrize(("tenant", "token"), [("acme", OWN), (None, TOKEN)])
def test_a_failed_message_keeps_its_tenant_or_none_when_it_is_sent_again(
    tenant: str | None, token: str, relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    options: Any = {"tenants": tenants.__getitem__, "tenant": "acme"}
    with override_settings(ANYMAIL=relay.settings(**options)):
        relay.refuse("bob@example.org")
        send(queue, tenant)
        assert queue.run() == "not_sent"
        relay.accept("bob@example.org")
        [(failed, *_)] = queue.failed
        EmailBackend().send_messages([failed])
    assert tokens(relay) == [token]
