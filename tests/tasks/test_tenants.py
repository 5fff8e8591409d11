"""A queued message has the name of its tenant with it; the worker looks up the token."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from django.core.management import call_command
from django.test import override_settings
from django.utils import timezone

from django_lettermint import worker
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import IDEMPOTENCY_KEY_TTL
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.results import Outcome
from django_lettermint.signals import message_failed
from django_lettermint.testing import Relay
from tests.sending import listening, mail
from tests.tasks.queueing import Queue, queueing

if TYPE_CHECKING:
    from tests.sending import Heard

TOKEN, OWN, NEW = "lm_of_the_settings", "lm_of_acme", "lm_of_acme_anew"


class Tenants:
    """A resolver with one tenant, which may be away."""

    def __init__(self) -> None:
        self.options: dict[str, object] = {"api_token": OWN}
        self.error: type[Exception] | None = None
        self.asked = 0

    def __call__(self, name: str) -> Mapping[str, object]:
        self.asked += 1
        if self.error:
            raise self.error
        return {"acme": self.options}[name]


@pytest.fixture
def tenants() -> Tenants:
    return Tenants()


@pytest.fixture
def relay(tenants: Tenants) -> Iterator[Relay]:
    with (
        Relay(TOKEN, other_tokens=[OWN, NEW]) as running,
        override_settings(ANYMAIL=running.settings(tenants=tenants, retries=0)),
    ):
        yield running


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def heard() -> Iterator[Heard]:
    with listening() as found:
        yield found


def own_mail() -> Any:
    message = mail("bob@example.org")
    message.tenant = "acme"  # type: ignore[attr-defined]
    return message


def test_the_worker_sends_under_the_token_of_the_tenant(
    relay: Relay, queue: Queue, heard: Heard
) -> None:
    with extras(tenant="acme"):
        queueing().send_messages([mail("bob@example.org")])
    text = json.dumps(queue.form)
    queue.tasks[0].args[0].update(json.loads(text))

    with extras(tenant="another"):
        assert queue.run()["outcome"] == "sent"

    assert OWN not in text
    assert [each.token for each in relay.messages] == [OWN]
    [(message, _)] = heard.sent
    assert message.tenant == "acme"  # type: ignore[attr-defined]


def test_a_message_without_a_tenant_is_queued_as_ever(
    relay: Relay, queue: Queue
) -> None:
    queueing().send_messages([mail("bob@example.org")])

    assert "tenant" not in json.dumps(queue.form)
    assert [each["envelope"]["version"] for each in queue.form["transactions"]] == [1]
    with extras(tenant="acme"):
        assert queue.run()["outcome"] == "sent"
    assert [each.token for each in relay.messages] == [TOKEN]


def test_releases_without_tenants_refuse_the_message_of_one(
    relay: Relay, queue: Queue
) -> None:
    queueing().send_messages([own_mail()])

    # They read version 1, and would ignore the name.
    assert [each["envelope"]["version"] for each in queue.form["transactions"]] == [2]


def test_a_token_that_is_replaced_meanwhile_is_the_new_one(
    relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    queueing().send_messages([own_mail()])
    tenants.options = {"api_token": NEW}

    assert queue.run()["outcome"] == "sent"
    assert [each.token for each in relay.messages] == [NEW]


def test_an_unknown_tenant_is_not_queued(
    relay: Relay, queue: Queue, heard: Heard
) -> None:
    message = mail("bob@example.org")
    message.tenant = "unknown"  # type: ignore[attr-defined]
    with pytest.raises(LettermintInvalidMessage, match="'unknown'"):
        queueing().send_messages([message, own_mail()])

    assert len(queue.tasks) == 1
    assert [each for each, *_ in heard.failed] == [message]


def test_a_list_asks_the_resolver_once(
    relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    queueing().send_messages([own_mail(), own_mail()])

    assert (len(queue.tasks), tenants.asked) == (2, 1)


def test_a_tenant_that_is_gone_ends_its_message(
    relay: Relay, queue: Queue, heard: Heard, tenants: Tenants
) -> None:
    queueing().send_messages([own_mail()])
    tenants.error = LookupError

    assert queue.run()["outcome"] == "not_sent"

    [(message, result, error)] = heard.failed
    assert result.outcome is Outcome.NOT_SENT
    assert isinstance(error, LettermintInvalidMessage)
    assert message.tenant == "acme"  # type: ignore[attr-defined]
    assert relay.statistics.connections == 0


def test_a_tenant_that_is_gone_leaves_alone_what_has_ended(
    relay: Relay, queue: Queue, heard: Heard, tenants: Tenants
) -> None:
    queueing().send_messages([own_mail()])
    [transaction] = queue.form["transactions"]
    transaction |= {
        "outcome": "sent",
        "recipients": ["bob@example.org"],
        "phase": "commit",
        "replies": {"bob@example.org": [250, "ok"]},
        "reply": [250, "ok"],
        "failure": None,
    }
    tenants.error = LookupError

    assert queue.run()["outcome"] == "sent"


def test_a_lookup_that_fails_leaves_the_task_for_another_run(
    relay: Relay, queue: Queue, heard: Heard, tenants: Tenants
) -> None:
    queueing().send_messages([own_mail()])
    form = queue.form
    tenants.error = ConnectionError
    with pytest.raises(LettermintInvalidMessage, match=r"\(ConnectionError\)"):
        queue.run()
    assert heard.failed == []

    tenants.error = None
    assert worker.run(form, None)["outcome"] == "sent"


def test_a_worker_without_tenants_leaves_the_task(
    relay: Relay, queue: Queue, heard: Heard
) -> None:
    queueing().send_messages([own_mail()])
    settings = relay.settings()
    with (
        override_settings(ANYMAIL=settings),
        pytest.raises(LettermintInvalidMessage, match="`tenants`"),
    ):
        queue.run()
    assert heard.failed == []
    assert relay.statistics.connections == 0


@pytest.mark.parametrize("tenant", ["", "a\nb", 5, ["acme"], None])
def test_a_form_with_an_odd_tenant_is_refused(
    tenant: object, relay: Relay, queue: Queue
) -> None:
    queueing().send_messages([own_mail()])
    queue.form["transactions"][0]["envelope"]["tenant"] = tenant

    with pytest.raises((ValueError, AnymailConfigurationError)):
        queue.run()
    assert relay.statistics.connections == 0


def test_a_form_of_two_tenants_is_refused(relay: Relay, queue: Queue) -> None:
    queueing().send_messages([own_mail()])
    [transaction] = queue.form["transactions"]
    other = {**transaction, "envelope": {**transaction["envelope"], "tenant": "other"}}
    queue.form["transactions"].append(other)

    with pytest.raises(ValueError, match="not a queued message"):
        queue.run()


def test_what_is_put_back_keeps_its_tenant(
    relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    queueing().send_messages([own_mail()])
    form = queue.form
    later: list[dict[str, Any]] = []
    with relay.outage():
        run = worker.run(form, lambda again, _: later.append(again))
    assert run["outcome"] == "put back"

    again = json.loads(json.dumps(later[0]))
    assert worker.run(again, None)["outcome"] == "sent"
    assert [each.token for each in relay.messages] == [OWN]


def test_the_time_in_the_queue_ends_before_the_tenants_deadline(
    relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    tenants.options["deadline"] = IDEMPOTENCY_KEY_TTL - 60
    queueing().send_messages([own_mail()])

    left = queue.form["give_up_at"] - timezone.now().timestamp()
    assert left < 61


@pytest.mark.django_db
def test_requeued_mail_keeps_its_tenant(relay: Relay, queue: Queue) -> None:
    from django_tasks_db.models import DBTaskResult

    queueing().send_messages([own_mail()])
    stored = DBTaskResult.objects.create(
        status="RUNNING",
        started_at=timezone.now() - timedelta(hours=1),
        task_path="django_lettermint.send_task.send",
        args_kwargs={"args": [queue.form], "kwargs": {}},
        run_after=timezone.now(),
        backend_name="default",
        worker_ids=["killed"],
    )
    call_command("requeue_lettermint", stdout=StringIO())

    stored.refresh_from_db()
    assert stored.status == "READY"
    [form] = stored.args_kwargs["args"]
    assert worker.run(form, None, again=True)["outcome"] == "sent"
    assert [each.token for each in relay.messages] == [OWN]


def test_a_failed_message_out_of_a_worker_may_be_sent_again(
    relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    failed: list[LettermintMessage] = []

    def keep(message: LettermintMessage, **others: object) -> None:
        failed.append(message)

    message_failed.connect(keep)
    try:
        queueing().send_messages([own_mail()])
        tenants.options = {"api_token": "lm_wrong"}
        worker.run(queue.form, None)
    finally:
        message_failed.disconnect(keep)
    tenants.options = {"api_token": NEW}
    queueing().send_messages(failed)
    queue.run()
    assert queue.run()["outcome"] == "sent"

    assert {each.token for each in relay.messages} == {NEW}


def test_a_message_of_no_tenant_is_none_of_any_tenant_when_it_is_sent_again(
    relay: Relay, queue: Queue, tenants: Tenants
) -> None:
    failed: list[LettermintMessage] = []

    def keep(message: LettermintMessage, **others: object) -> None:
        failed.append(message)

    message = mail("bob@example.org")
    message.tenant = None  # type: ignore[attr-defined]
    settings = relay.settings(tenants=tenants, tenant="acme")
    message_failed.connect(keep)
    try:
        with override_settings(ANYMAIL=settings):
            queueing().send_messages([message])
            relay.refuse("bob@example.org")
            worker.run(queue.form, None)
    finally:
        message_failed.disconnect(keep)
    relay.accept("bob@example.org")
    with override_settings(ANYMAIL=settings):
        EmailBackend().send_messages(failed)

    assert [each.token for each in relay.messages] == [TOKEN]
