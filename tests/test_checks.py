"""What `manage.py check` says; the ids are in `checks.Id`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core.checks import CheckMessage, run_checks
from django.core.checks.registry import registry
from django.test import override_settings
from django.urls import URLPattern, URLResolver, include, path

from django_lettermint import checks
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import Secret
from django_lettermint.webhooks import (
    LettermintInboundWebhookView,
    LettermintTrackingWebhookView,
    LettermintWebhookView,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from django.core.mail.backends.base import BaseEmailBackend

BACKEND = "django_lettermint.backend.EmailBackend"
QUEUE = "django_lettermint.tasks.EmailBackend"
SMTP = "django.core.mail.backends.smtp.EmailBackend"
TOKEN = "lm_5f0c1e9a7b"

#: Django 6.1 has MAILERS and no EMAIL_BACKEND besides; before, EMAIL_BACKEND decides, and
#: MAILERS is what a project prepares for later.
MAILERS_DECIDE = django.VERSION >= (6, 1)


class Subclass(EmailBackend):
    """Takes the same options."""


class OwnConstructor(EmailBackend):
    """Takes options of its own."""

    def __init__(self, colour: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Broken(EmailBackend):
    """Cannot be made."""

    def __new__(cls, **kwargs: Any) -> Broken:
        raise LookupError("no such row")


def factory(**kwargs: Any) -> BaseEmailBackend:
    return EmailBackend(**kwargs)


def mailer(path: str = BACKEND, **options: Any) -> dict[str, Any]:
    return {"BACKEND": path, "OPTIONS": options}


def in_use(*paths: str) -> dict[str, Any]:
    """Return settings with which these backends, and no others, send."""
    if not MAILERS_DECIDE:
        return {"EMAIL_BACKEND": paths[0]}
    return {
        "MAILERS": {f"m{number}": mailer(path) for number, path in enumerate(paths)}
    }


def ids(messages: list[CheckMessage]) -> list[str | None]:
    return [message.id for message in messages]


def found_by(
    check: Callable[[], list[CheckMessage]], **settings: Any
) -> tuple[str, str]:
    """Return id and text of the one message that a check has for these settings."""
    with override_settings(**settings):
        (message,) = check()
    assert TOKEN not in str(message)
    assert message.is_serious() is (".E0" in str(message.id))
    return str(message.id).removeprefix("lettermint_smtp."), message.msg


def test_the_checks_run_with_those_about_mail_and_of_databases() -> None:
    tags = {getattr(each, "__name__", ""): each.tags for each in registry.get_checks()}

    for subject in ("backends", "queues", "webhooks", "names", "other_settings"):
        assert tags[f"check_{subject}"] == ("mail",)
    assert tags["check_distributions"] == ("mail",)
    assert tags["check_tenants"] == ("database",)


@override_settings(EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN=TOKEN)
def test_correct_settings_pass_without_a_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run_checks(tags=["mail"]) == []
        with override_settings(ANYMAIL=None):
            assert run_checks(tags=["mail"]) == []

    assert caught == []


# -- backends ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "identity", "text"),
    [
        (
            {"LETTERMINT_API_TOKEN": "to ken"},
            "E001",
            "LETTERMINT_API_TOKEN must be a s",
        ),
        ({"EMAIL_BACKEND": f"{__name__}.Broken"}, "E001", "LookupError: no such row"),
        (
            {"LETTERMINT_TENANT": "acme"},
            "E003",
            "EMAIL_BACKEND has the option `tenant`",
        ),
        (
            {"LETTERMINT_HOST": "127.0.0.1", "LETTERMINT_SECURITY": "plaintext"},
            "W001",
            "EMAIL_BACKEND sends mail and the token unencrypted",
        ),
        (
            {"LETTERMINT_SEND_DEFAULTS": {"from_email": "us@example.com"}},
            "W006",
            "EMAIL_BACKEND has a from_email in send_defaults",
        ),
    ],
)
def test_errors_and_settings_without_effect_are_reported(
    settings: dict[str, Any], identity: str, text: str
) -> None:
    usual = {"EMAIL_BACKEND": BACKEND, "LETTERMINT_API_TOKEN": TOKEN}
    number, found = found_by(checks.check_backends, **{**usual, **settings})

    assert number == identity
    assert found.startswith(text)
    with override_settings(**{**usual, **settings}, DEBUG=True):
        # Plaintext is fine in development.
        assert len(checks.check_backends()) == (identity != "W001")
        assert checks.check_tenants() == []


def test_each_mailer_of_ours_is_checked_and_not_changed() -> None:
    mailers = {
        "default": mailer(api_token=TOKEN),
        "news": mailer(api_token=TOKEN, port="465"),
        "bulk": mailer(f"{__name__}.Subclass"),
        "secret": mailer(api_token=TOKEN, signing_secret="whsec_1"),
        "other": mailer("django.core.mail.backends.dummy.EmailBackend", port="x"),
        "smtp": {},
    }
    with override_settings(MAILERS=mailers):
        port, token, secret = checks.check_backends()

    assert port.msg.startswith("MAILERS['news']['OPTIONS']['port'] must be a whole")
    assert "api_token is not set" in token.msg
    assert secret.id == "lettermint_smtp.W005"
    assert secret.msg.startswith("MAILERS['secret']['OPTIONS']['signing_secret'] has")
    assert secret.hint == "Set LETTERMINT_SIGNING_SECRET instead."
    assert mailers["default"] == mailer(api_token=TOKEN)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (BACKEND, True),
        (f"{__name__}.Subclass", True),
        (f"{__name__}.OwnConstructor", False),
        (f"{__name__}.factory", False),
        (SMTP, False),
        ("django_lettermint.backend.Missing", False),
        ("no dots", False),
    ],
)
def test_backends_that_take_our_options_are_checked(
    path: str, *, expected: bool
) -> None:
    with override_settings(MAILERS={"default": mailer(path)}):
        assert bool(checks.check_backends()) is expected


@override_settings(EMAIL_BACKEND=BACKEND, MAILERS={"default": mailer("some.Other")})
def test_email_backend_counts_where_django_uses_it() -> None:
    assert len(checks.check_backends()) == (0 if MAILERS_DECIDE else 1)


@pytest.mark.parametrize(
    "mail_settings",
    [
        {"EMAIL_BACKEND": None},
        {"EMAIL_BACKEND": 7},
        {"EMAIL_BACKEND": ".EmailBackend"},
        {"EMAIL_BACKEND": "..backend.EmailBackend"},
        {"MAILERS": None},
        {"MAILERS": {"default": None}},
        {"MAILERS": {"default": BACKEND}},
        {"MAILERS": {"default": {"BACKEND": None}}},
        {"MAILERS": {"default": {"BACKEND": BACKEND, "OPTIONS": None}}},
        {"EMAIL_BACKEND": SMTP},
    ],
    ids=str,
)
def test_other_settings_are_left_to_django(mail_settings: dict[str, object]) -> None:
    with override_settings(LETTERMINT_API_TOKEN=TOKEN, **mail_settings):
        assert checks.check_backends() == checks.check_queues() == []
        assert checks.check_tenants() == []


# -- webhooks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"LETTERMINT_WEBHOOK_DEDUPE": "no"}, "LETTERMINT_WEBHOOK_DEDUPE must be True"),
        ({"ANYMAIL": ["LETTERMINT_SIGNING_SECRET"]}, "The settings cannot be read"),
    ],
)
def test_a_wrong_setting_of_webhooks_is_an_error(
    settings: dict[str, Any], text: str
) -> None:
    identity, found = found_by(checks.check_webhooks, **settings)

    assert identity == "E002"
    assert found.startswith(text)


@pytest.mark.parametrize("secret", [None, "", [], "whsec_1"])
def test_a_secret_is_needed_where_a_url_is_a_webhook(secret: object) -> None:
    with override_settings(ANYMAIL={"LETTERMINT_SIGNING_SECRET": secret}):
        for urlconf in ("tests.urls", None):
            with override_settings(ROOT_URLCONF=urlconf):
                assert checks.check_webhooks() == []
        with override_settings(ROOT_URLCONF="tests.webhook_urls"):
            found = checks.check_webhooks()
    assert ids(found) == ([] if secret else ["lettermint_smtp.W004"])
    places = "anymail/lettermint/tracking/ and anymail/lettermint/inbound/: all"
    assert all(places in message.msg for message in found)


class Urls:
    """A URLconf in place of a module."""

    def __init__(self, *urlpatterns: URLPattern | URLResolver) -> None:
        self.urlpatterns = urlpatterns


def view(**attributes: object) -> type[LettermintWebhookView]:
    return type("View", (LettermintTrackingWebhookView,), attributes)


def needs_a_request(*_: object, **__: object) -> None:
    raise AssertionError("a check has no request")


def hook(
    kind: type[LettermintWebhookView] = LettermintTrackingWebhookView, **options: Any
) -> URLPattern:
    return path("hook/", kind.as_view(**options))


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (Urls(hook(LettermintInboundWebhookView)), ["W004"]),
        (Urls(path("mail/", include(([hook()], "mail"), namespace="mail"))), ["W004"]),
        (Urls(hook(signing_secret="whsec_own"), hook()), ["W004"]),
        (Urls(hook(signing_secret=None)), ["W004"]),
        (Urls(hook(view(signing_secret=""))), ["W004"]),
        (Urls(hook(signing_secret="whsec_own")), []),
        (Urls(hook(view(signing_secret="whsec_own"))), []),
        (Urls(hook(view(signing_secret=("whsec_1", Secret("whsec_0"))))), []),
        (Urls(hook(view(signing_secret=property(needs_a_request)))), []),
        (Urls(hook(view(setup=needs_a_request))), []),
    ],
)
def test_a_webhook_may_have_its_own_secret(urls: Urls, expected: list[str]) -> None:
    with override_settings(ROOT_URLCONF=urls):
        found = checks.check_webhooks()
    assert ids(found) == [f"lettermint_smtp.{each}" for each in expected]


def test_an_odd_secret_of_a_view_is_an_error_that_names_the_url() -> None:
    odd = hook(view(signing_secret=["whsec_1", ""]))
    with override_settings(ROOT_URLCONF=Urls(odd)):
        [message] = checks.check_webhooks()

    assert message.id == "lettermint_smtp.E002"
    assert "signing_secret" in message.msg
    assert message.hint == "The webhook at hook/ raises this error."


@override_settings(LETTERMINT_SIGNING_SECRET="whsec_1")
@pytest.mark.parametrize(
    ("urlconf", "options", "expected"),
    [
        ("tests.webhook_urls", {"correlation_key": "other"}, ["W007"]),
        ("tests.webhook_urls", {"correlation_key": "id"}, []),
        ("tests.webhook_urls", {"correlation_key": None}, []),
        ("tests.webhook_urls", {}, []),
        ("tests.urls", {"correlation_key": "other"}, []),
    ],
)
def test_a_mailer_with_another_correlation_key_is_a_warning(
    urlconf: str, options: dict[str, Any], expected: list[str]
) -> None:
    with override_settings(
        ROOT_URLCONF=urlconf,
        LETTERMINT_CORRELATION_KEY="id",
        MAILERS={"default": mailer(**options)},
    ):
        found = checks.check_webhooks()
    assert ids(found) == [f"lettermint_smtp.{each}" for each in expected]


# -- names of settings -------------------------------------------------------------------


@override_settings(
    LETTERMINT_API_KEY=TOKEN, ANYMAIL_LETTERMINT_PROT=1, LETTERMINT_PORT=465
)
def test_an_unknown_setting_is_a_warning_with_a_suggestion() -> None:
    prot, key = sorted(checks.check_names(), key=lambda message: message.msg)

    assert ids([prot, key]) == ["lettermint_smtp.W002"] * 2
    name = "ANYMAIL_LETTERMINT_PROT"
    assert prot.msg == f"{name} is not a setting of django-lettermint-smtp."
    assert prot.hint == "Did you mean 'LETTERMINT_PORT'?"
    assert key.hint == "Did you mean 'LETTERMINT_API_TOKEN'?"
    assert TOKEN not in f"{prot} {key}"


LEFT_OVER = dict.fromkeys(
    [
        *("EMAIL_HOST", "EMAIL_PORT", "EMAIL_HOST_USER", "EMAIL_HOST_PASSWORD"),
        *("EMAIL_USE_TLS", "EMAIL_USE_SSL", "EMAIL_TIMEOUT"),
        *("EMAIL_SSL_CERTFILE", "EMAIL_SSL_KEYFILE"),
    ],
    TOKEN,
)


@override_settings(EMAIL_SUBJECT_PREFIX="[Shop] ", EMAIL_USE_LOCALTIME=True)
@pytest.mark.filterwarnings("ignore:The EMAIL_")
@pytest.mark.parametrize("path", [BACKEND, QUEUE, f"{__name__}.OwnConstructor"])
def test_settings_of_djangos_backend_are_one_warning(path: str) -> None:
    with override_settings(**in_use(path), **LEFT_OVER):
        (message,) = checks.check_other_settings()

    assert message.id == "lettermint_smtp.W008"
    assert message.msg.endswith(f": {', '.join(LEFT_OVER)}.")
    assert "LETTERMINT_API_TOKEN for EMAIL_HOST_PASSWORD" in str(message.hint)
    assert "LETTERMINT_SECURITY for EMAIL_USE_TLS" in str(message.hint)
    assert TOKEN not in str(message)
    with override_settings(**in_use(path)):
        assert checks.check_other_settings() == []
        with override_settings(EMAIL_HOST="localhost"):
            assert checks.check_other_settings()[0].msg.endswith(": EMAIL_HOST.")


@pytest.mark.filterwarnings("ignore:The EMAIL_")
@pytest.mark.parametrize(
    "paths", [[SMTP, BACKEND], ["no.such.Backend", BACKEND], [f"{__name__}.factory"]]
)
def test_another_backend_may_need_its_settings(paths: list[str]) -> None:
    with override_settings(**LEFT_OVER):
        assert checks.check_other_settings() == []
        with override_settings(**in_use(*paths)):
            assert checks.check_other_settings() == []


@pytest.mark.parametrize(
    ("names", "others"),
    [
        ([], []),
        (["django-lettermint-smtp"], []),
        (["Django_Lettermint.SMTP"] * 2, []),
        (["django-lettermint-smtp", "django-lettermint"], ["django-lettermint"]),
    ],
)
def test_another_distribution_of_the_same_package_is_a_warning(
    names: list[str], others: list[str]
) -> None:
    found = checks.check_distributions(packages={"django_lettermint": names})

    assert [each.msg.partition(" installs a package ")[0] for each in found] == others
    assert ids(found) == ["lettermint_smtp.W003"] * len(others)


# -- queues ------------------------------------------------------------------------------


@override_settings(LETTERMINT_API_TOKEN=TOKEN)
def test_a_queue_that_could_take_nothing_is_an_error() -> None:
    mailers = {"default": mailer(QUEUE, using="relay"), "relay": mailer()}
    with override_settings(
        **{"MAILERS": mailers} if MAILERS_DECIDE else {"EMAIL_BACKEND": QUEUE}
    ):
        assert checks.check_queues() == []
        number, text = found_by(checks.check_queues, LETTERMINT_QUEUE_NAME="nowhere")

    assert (number, "'nowhere'" in text) == ("E001", True)


#: Django reads TASKS once, so each of these is a process of its own.
PROJECT = """
import sys
import django
from django.conf import settings
from django.core.management import call_command

tasks = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
immediate = tasks + ".backends.immediate.ImmediateBackend"
settings.configure(
    SECRET_KEY="tests",
    USE_TZ=True,
    INSTALLED_APPS=["django_lettermint"],
    LETTERMINT_API_TOKEN="lm_unused",
    TASKS={"default": {"BACKEND": immediate, "QUEUES": ["reports"]}},
    EMAIL_BACKEND=sys.argv[1],
)
django.setup()
import django_lettermint.tasks
call_command('check')
"""
NO_TASKS = "import sys; sys.modules |= {'django.tasks': None, 'django_tasks': None}"


@pytest.mark.parametrize(
    ("before", "backend", "problem"),
    [
        (NO_TASKS, BACKEND, ""),
        ("", QUEUE, "no backend 'default' with a queue 'default'"),
        (NO_TASKS, QUEUE, 'pip install "django-lettermint-smtp[tasks]"'),
    ],
)
def test_only_projects_that_queue_need_tasks_with_a_default_queue(
    before: str, backend: str, problem: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", before + PROJECT, backend],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert (done.returncode == 0) is (problem == ""), done.stderr
    assert problem in done.stderr
    assert ("lettermint_smtp.E001" in done.stderr) is (problem != "")


# -- tenants -----------------------------------------------------------------------------


def tenants(name: str) -> Mapping[str, object]:
    """Know "acme"; nothing is known of others while the database is away."""
    if name == "away":
        raise ConnectionError
    return {"acme": {"api_token": TOKEN}, "odd": {"token": TOKEN}}[name]


@override_settings(EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN=TOKEN)
@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("acme", []),
        ("away", []),
        ("odd", ["tenants('odd')['api_token'] must be"]),
        ("unknown", ["tenant 'unknown'"]),
    ],
)
def test_the_tenant_of_the_settings_is_looked_up_where_databases_are_checked(
    name: str, problems: list[str]
) -> None:
    with override_settings(LETTERMINT_TENANTS=tenants, LETTERMINT_TENANT=name):
        assert run_checks(tags=["mail"]) == []
        found = checks.check_tenants()

    assert ids(found) == ["lettermint_smtp.W009"] * len(problems)
    assert all(text in each.msg for text, each in zip(problems, found, strict=True))
    assert all("Mail sent by EMAIL_BACKEND is" in str(each.hint) for each in found)
    assert TOKEN not in str(found)


OWN = path("x/", include([path("", LettermintTrackingWebhookView.as_view())]))


@pytest.mark.parametrize(
    ("resolver", "expected"), [(None, ["lettermint_smtp.W004"]), (tenants, [])]
)
@pytest.mark.parametrize(
    "url",
    [
        path("of/<str:tenant>/", include("django_lettermint.urls")),
        path("<int:tenant>/", LettermintTrackingWebhookView.as_view()),
        path("acme/", include("django_lettermint.urls"), {"tenant": "acme"}),
        path("globex/", LettermintTrackingWebhookView.as_view(), {"tenant": "globex"}),
        path("<str:tenant>/", include([OWN])),
    ],
    ids=str,
)
def test_webhooks_of_tenants_need_a_resolver(
    url: Any, resolver: object, expected: list[str]
) -> None:
    with override_settings(ROOT_URLCONF=Urls(url), LETTERMINT_TENANTS=resolver):
        found = checks.check_webhooks()
        assert ids(found) == expected
        assert all("LETTERMINT_TENANTS" in str(message.hint) for message in found)
    # A URL without a tenant still needs the secret.
    usual = path("usual/", include("django_lettermint.urls"))
    with override_settings(ROOT_URLCONF=Urls(url, usual), LETTERMINT_TENANTS=tenants):
        [message] = checks.check_webhooks()
        places = "at usual/lettermint/tracking/ and usual/lettermint/inbound/: all"
        assert places in message.msg
