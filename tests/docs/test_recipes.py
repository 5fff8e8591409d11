"""The recipes of the documentation work with the packages that they are for."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import TYPE_CHECKING, Any

import django
import pytest
import sentry_sdk
from allauth.core.context import request_context  # type: ignore[import-untyped]
from django.contrib.auth.models import User
from django.core.mail import send_mail
from django.test import Client, RequestFactory, override_settings
from django.urls import path
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.transport import Transport

from django_lettermint.exceptions import RecipientsRefused
from tests.settings import INSTALLED_APPS
from tests.snippets import DOCS, receivers_forgotten, under

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sentry_sdk.envelope import Envelope

    from django_lettermint.testing import Relay

TEMPLATES = {
    "registration/password_reset_subject.txt": "Reset",
    "registration/password_reset_email.html": "{{ token }}",
    "account/email/password_reset_key_subject.txt": "Reset",
    "account/email/password_reset_key_message.txt": "{{ key }}",
}


@pytest.fixture(autouse=True)
def _mail_goes_to_the_relay(relay: Relay) -> Iterator[None]:
    engine = {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [("django.template.loaders.locmem.Loader", TEMPLATES)],
        },
    }
    backend = "django_lettermint.backend.EmailBackend"
    settings = override_settings(
        EMAIL_BACKEND=backend, ANYMAIL=relay.settings(), TEMPLATES=[engine]
    )
    with settings, receivers_forgotten():
        yield


def recipe(heading: str) -> ModuleType:
    """Return a module of the snippets below a heading."""
    module = ModuleType("recipe")
    for snippet in under(DOCS / "recipes.md", heading):
        snippet.run(vars(module))
    return module


def send(who: str = "ada@example.com") -> None:
    send_mail("Hi", "", "shop@example.com", [who])


def fail(relay: Relay) -> None:
    relay.refuse("nobody@example.com")
    with pytest.raises(RecipientsRefused):
        send("nobody@example.com")


@pytest.mark.django_db
def test_a_password_reset_has_its_tag_and_route(relay: Relay) -> None:
    User.objects.create_user("ada", "ada@example.com", "secret")

    with override_settings(ROOT_URLCONF=recipe("Password reset")):
        Client().post("/accounts/password_reset/", {"email": "ada@example.com"})

    [mail] = relay.messages
    assert (mail.tag, mail.route) == ("password reset", "outgoing")


def test_mail_of_allauth_has_its_template_as_tag(
    relay: Relay, rf: RequestFactory
) -> None:
    adapter = recipe("django-allauth").AccountAdapter()

    with request_context(rf.get("/")):
        adapter.send_mail("account/email/password_reset_key", "ada@example.com", {})

    assert [mail.tag for mail in relay.messages] == ["password_reset_key"]


def test_error_mails_have_their_tag(relay: Relay) -> None:
    handler = recipe("Error mails to `ADMINS`").TaggedAdminEmailHandler()
    record = logging.makeLogRecord({"levelname": "ERROR", "msg": "It broke"})

    admin = "admin@example.com"
    with override_settings(
        ADMINS=[admin if django.VERSION >= (6,) else ("Admin", admin)]
    ):
        handler.emit(record)

    [mail] = relay.messages
    assert (mail.tag, mail.metadata["kind"]) == ("admin", "error")


@pytest.fixture
def get_health() -> Iterator[Callable[[str], int]]:
    def status(url: str) -> int:
        return Client().get(url, {"format": "json"}).status_code

    urls = recipe("Health check")
    vars(urls)["urlpatterns"].append(path("mail/", urls.mail_health))
    apps = [*INSTALLED_APPS, "health_check"]
    with override_settings(ROOT_URLCONF=urls, INSTALLED_APPS=apps):
        yield status


@pytest.mark.parametrize(("url", "status"), [("/health/", 500), ("/mail/", 503)])
def test_a_relay_is_healthy_while_it_takes_logins(
    relay: Relay, get_health: Callable[[str], int], url: str, status: int
) -> None:
    with relay.outage():
        assert get_health(url) == status
    assert get_health(url) == 200
    assert relay.logins.successes == 1
    assert relay.messages == []


class _Sent(Transport):
    """Keeps the events for Sentry."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.events.append(envelope.get_event())


def test_sentry_gets_one_event_for_a_failure_without_the_token(relay: Relay) -> None:
    sent = _Sent()
    sentry_sdk.init(
        dsn="http://key@127.0.0.1/1", transport=sent, default_integrations=False
    )
    receivers = recipe("Sentry")  # signals refer to them weakly

    fail(relay)

    sentry_sdk.get_global_scope().set_client(None)
    assert receivers.report_to_sentry
    [event] = sent.events
    assert event["tags"]["lettermint.outcome"] == "not_sent"
    assert event["tags"]["lettermint.phase"] == "rcpt"
    assert event["fingerprint"] == ["lettermint", "RecipientsRefused", "rcpt"]
    assert relay.token not in str(event)


def test_opentelemetry_gets_outcomes_pool_states_and_spans(relay: Relay) -> None:
    reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
    metrics.set_meter_provider(MeterProvider([reader]))
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracers)
    receivers = recipe("OpenTelemetry")  # signals refer to them weakly

    send()
    fail(relay)

    assert receivers.measure
    outcomes = _points(reader, "mail.messages")
    assert {(point["outcome"], point["phase"]) for point in outcomes} == {
        ("sent", "done"),
        ("not_sent", "rcpt"),
    }
    states = _points(reader, "mail.connections")
    assert {point["state"] for point in states} == {"idle", "in_use", "waiting"}
    attributes = [span.attributes or {} for span in spans.get_finished_spans()]
    assert [each["mail.outcome"] for each in attributes] == ["sent", "not_sent"]


def _points(reader: InMemoryMetricReader, name: str) -> list[Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return [
        point.attributes
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    ]


@pytest.mark.django_db
def test_mail_waits_for_the_commit(
    relay: Relay, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        recipe("After the commit").confirm(7, "ada@example.com")
        assert relay.messages == []

    assert [mail.idempotency_key for mail in relay.messages] == ["order-7-confirmed"]
