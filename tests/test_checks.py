"""What `manage.py check` says; the ids are in `checks.Id`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import django
import pytest
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

    from django.core.checks import CheckMessage
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


def queueing(**options: Any) -> dict[str, Any]:
    """Return settings of a project that queues its mail."""
    if not MAILERS_DECIDE:
        return {"EMAIL_BACKEND": QUEUE, **options}
    queue = mailer(QUEUE, using="relay")
    return {"MAILERS": {"default": queue, "relay": mailer()}, **options}


def tenants(name: str) -> Mapping[str, object]:
    """Know "acme"; nothing is known of others while the database is away."""
    if name == "away":
        raise ConnectionError
    return {"acme": {"api_token": TOKEN}, "odd": {"token": TOKEN}}[name]


class Urls:
    """A URLconf in place of a module."""

    def __init__(self, *urlpatterns: URLPattern | URLResolver) -> None:
        self.urlpatterns = urlpatterns


def view(**attributes: object) -> type[LettermintWebhookView]:
    return type("View", (LettermintTrackingWebhookView,), attributes)


def hook(
    kind: type[LettermintWebhookView] = LettermintTrackingWebhookView, **options: Any
) -> URLPattern:
    return path("hook/", kind.as_view(**options))


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("lettermint_smtp.") for message in messages]


def distributions(*names: str) -> Callable[[], list[CheckMessage]]:
    return partial(checks.check_distributions, packages={"django_lettermint": names})


#: All checks, with their tags.
TAGS: dict[Any, str] = {
    checks.check_backends: "mail",
    checks.check_queues: "mail",
    checks.check_webhooks: "mail",
    checks.check_names: "mail",
    checks.check_other_settings: "mail",
    checks.check_distributions: "mail",
    checks.check_tenants: "database",
}


#: Without the one that reads all distributions, whatever the settings are.
QUICK = TAGS.keys() - {checks.check_distributions}


def test_the_checks_run_with_those_about_mail_and_of_databases() -> None:
    assert {
        each: each.tags[0] for each in registry.get_checks() if each in TAGS
    } == TAGS


PLAINTEXT = {"LETTERMINT_HOST": "127.0.0.1", "LETTERMINT_SECURITY": "plaintext"}
OF_TENANT = {"LETTERMINT_TENANTS": tenants, "LETTERMINT_TENANT": "odd"}
#: Checks, settings besides a backend with a token, and the one message for them.
REPORTED: list[tuple[Callable[[], list[CheckMessage]], dict[str, Any], str, str]] = [
    (
        checks.check_backends,
        {"LETTERMINT_API_TOKEN": "to ken"},
        "E001",
        "LETTERMINT_API_TOKEN must be a s",
    ),
    (
        checks.check_backends,
        {"EMAIL_BACKEND": f"{__name__}.Broken"},
        "E001",
        "LookupError: no such row",
    ),
    (
        checks.check_backends,
        {"LETTERMINT_TENANT": "acme"},
        "E003",
        "EMAIL_BACKEND has the option `tenant`",
    ),
    (
        checks.check_backends,
        PLAINTEXT,
        "W001",
        "EMAIL_BACKEND sends mail and the token unencrypted",
    ),
    (
        checks.check_backends,
        {"LETTERMINT_SEND_DEFAULTS": {"from_email": "us@example.com"}},
        "W006",
        "EMAIL_BACKEND has a from_email in send_defaults",
    ),
    (checks.check_queues, queueing(LETTERMINT_QUEUE_NAME="no"), "E001", "'no'"),
    (
        checks.check_webhooks,
        {"LETTERMINT_WEBHOOK_DEDUPE": "no"},
        "E002",
        "LETTERMINT_WEBHOOK_DEDUPE must be True",
    ),
    (checks.check_webhooks, {"ANYMAIL": ["X"]}, "E002", "The settings cannot be read"),
    (
        checks.check_webhooks,
        {"ROOT_URLCONF": Urls(hook(view(signing_secret=["whsec_1", ""])))},
        "E002",
        "The webhook at hook/ raises this error.",
    ),
    (
        checks.check_names,
        {"LETTERMINT_API_KEY": TOKEN},
        "W002",
        "Did you mean 'LETTERMINT_API_TOKEN'?",
    ),
    (
        checks.check_names,
        {"ANYMAIL_LETTERMINT_PROT": 1},
        "W002",
        "ANYMAIL_LETTERMINT_PROT is not a setting of django-lettermint-smtp.",
    ),
    (
        distributions("django-lettermint-smtp", "django-lettermint"),
        {},
        "W003",
        "django-lettermint installs a package ",
    ),
    (checks.check_tenants, OF_TENANT, "W009", "tenants('odd')['api_token'] must be"),
    (
        checks.check_tenants,
        {**OF_TENANT, "LETTERMINT_TENANT": "unknown"},
        "W009",
        "Mail sent by EMAIL_BACKEND is",
    ),
]


@pytest.mark.parametrize(
    ("check", "settings", "identity", "text"),
    REPORTED,
    ids=[f"{identity} {text}" for _, _, identity, text in REPORTED],
)
def test_what_would_fail_or_have_no_effect_is_reported(
    check: Callable[[], list[CheckMessage]],
    settings: dict[str, Any],
    identity: str,
    text: str,
) -> None:
    usual = {"EMAIL_BACKEND": BACKEND, "LETTERMINT_API_TOKEN": TOKEN}
    with override_settings(**{**usual, **settings}):
        [message] = check()
        # A tenant is looked up only where the backend can be made.
        assert check is checks.check_tenants or checks.check_tenants() == []

    assert ids([message]) == [identity]
    assert message.is_serious() is identity.startswith("E")
    assert text in f"{message.msg} {message.hint}"
    assert TOKEN not in str(message)


#: Settings that are right, and those that are another's.
IN_ORDER: list[dict[str, Any]] = [
    {},
    {"ANYMAIL": None},
    {"ROOT_URLCONF": None},
    {**PLAINTEXT, "DEBUG": True},
    {"LETTERMINT_TENANTS": tenants, "LETTERMINT_TENANT": "acme"},
    # Its table may not exist yet.
    {"LETTERMINT_TENANTS": tenants, "LETTERMINT_TENANT": "away"},
    {"LETTERMINT_PORT": 465},
    {"EMAIL_SUBJECT_PREFIX": "[Shop] ", "EMAIL_USE_LOCALTIME": True},
    queueing(),
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
]


@pytest.mark.parametrize("settings", IN_ORDER, ids=str)
def test_right_settings_and_those_of_others_are_not_reported(
    settings: dict[str, Any],
) -> None:
    usual = {"EMAIL_BACKEND": BACKEND, "LETTERMINT_API_TOKEN": TOKEN}
    with (
        override_settings(**{**usual, **settings}),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        assert [message for check in QUICK for message in check()] == []

    assert caught == []


@pytest.mark.parametrize("names", [[], ["Django_Lettermint.SMTP"] * 2])
def test_our_own_distribution_is_not_reported(names: list[str]) -> None:
    assert checks.check_distributions() == distributions(*names)() == []


# -- backends and mailers ----------------------------------------------------------------


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
    assert ids([secret]) == ["W005"]
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


LEFT_OVER = dict.fromkeys(
    [
        *("EMAIL_HOST", "EMAIL_PORT", "EMAIL_HOST_USER", "EMAIL_HOST_PASSWORD"),
        *("EMAIL_USE_TLS", "EMAIL_USE_SSL", "EMAIL_TIMEOUT"),
        *("EMAIL_SSL_CERTFILE", "EMAIL_SSL_KEYFILE"),
    ],
    TOKEN,
)


@pytest.mark.filterwarnings("ignore:The EMAIL_")
@pytest.mark.parametrize("path", [BACKEND, QUEUE, f"{__name__}.OwnConstructor"])
def test_settings_of_djangos_backend_are_one_warning(path: str) -> None:
    with override_settings(**in_use(path), **LEFT_OVER):
        [message] = checks.check_other_settings()

    assert ids([message]) == ["W008"]
    assert message.msg.endswith(f": {', '.join(LEFT_OVER)}.")
    assert "LETTERMINT_API_TOKEN for EMAIL_HOST_PASSWORD" in str(message.hint)
    assert "LETTERMINT_SECURITY for EMAIL_USE_TLS" in str(message.hint)
    assert TOKEN not in str(message)
    with override_settings(**in_use(path), EMAIL_HOST="localhost"):
        assert checks.check_other_settings()[0].msg.endswith(": EMAIL_HOST.")


@pytest.mark.filterwarnings("ignore:The EMAIL_")
@pytest.mark.parametrize(
    "paths", [[SMTP, BACKEND], ["no.such.Backend", BACKEND], [f"{__name__}.factory"]]
)
def test_another_backend_may_need_its_settings(paths: list[str]) -> None:
    with override_settings(**LEFT_OVER):
        for settings in ({}, {"EMAIL_BACKEND": None}, in_use(*paths)):
            with override_settings(**settings):
                assert checks.check_other_settings() == []


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


# -- webhooks ----------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [None, "", [], "whsec_1"])
def test_a_secret_is_needed_where_a_url_is_a_webhook(secret: object) -> None:
    with override_settings(ANYMAIL={"LETTERMINT_SIGNING_SECRET": secret}):
        assert checks.check_webhooks() == []
        with override_settings(ROOT_URLCONF="tests.webhook_urls"):
            found = checks.check_webhooks()
    assert ids(found) == ([] if secret else ["W004"])
    places = "anymail/lettermint/tracking/ and anymail/lettermint/inbound/: all"
    assert all(places in message.msg for message in found)


def needs_a_request(*_: object, **__: object) -> None:
    raise AssertionError("a check has no request")


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (Urls(hook(LettermintInboundWebhookView)), ["W004"]),
        (Urls(path("mail/", include(([hook()], "mail"), namespace="mail"))), ["W004"]),
        (Urls(hook(signing_secret="whsec_own"), hook()), ["W004"]),
        (Urls(hook(signing_secret=None)), ["W004"]),
        (Urls(hook(view(signing_secret=""))), ["W004"]),
        (Urls(hook(signing_secret="whsec_own")), []),
        (Urls(hook(view(signing_secret=("whsec_1", Secret("whsec_0"))))), []),
        (Urls(hook(view(signing_secret=property(needs_a_request)))), []),
        (Urls(hook(view(setup=needs_a_request))), []),
    ],
)
def test_a_webhook_may_have_its_own_secret(urls: Urls, expected: list[str]) -> None:
    with override_settings(ROOT_URLCONF=urls):
        assert ids(checks.check_webhooks()) == expected


OWN = path("x/", include([path("", LettermintTrackingWebhookView.as_view())]))


@pytest.mark.parametrize(("resolver", "expected"), [(None, ["W004"]), (tenants, [])])
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


@override_settings(LETTERMINT_SIGNING_SECRET="whsec_1", LETTERMINT_CORRELATION_KEY="id")
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
    mailers = {"default": mailer(**options)}
    with override_settings(ROOT_URLCONF=urlconf, MAILERS=mailers):
        assert ids(checks.check_webhooks()) == expected
