"""What `manage.py check` says; the ids are in `checks.Id`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from io import StringIO
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.apps import apps
from django.core.checks import CheckMessage, registry, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.urls import URLPattern, URLResolver, include, path

from django_lettermint import checks
from django_lettermint.apps import LettermintConfig
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import Secret
from django_lettermint.webhooks import (
    LettermintInboundWebhookView,
    LettermintTrackingWebhookView,
    LettermintWebhookView,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django.core.mail.backends.base import BaseEmailBackend

BACKEND = "django_lettermint.backend.EmailBackend"
QUEUE = "django_lettermint.tasks.EmailBackend"
TOKEN = "lm_5f0c1e9a7b"

#: Django 6.1 has MAILERS and lets nobody set EMAIL_BACKEND besides; before, the latter
#: decides, and MAILERS is what a project prepares for later.
MAILERS_DECIDE = django.VERSION >= (6, 1)


class Subclass(EmailBackend):
    """Takes the same options."""


class OwnConstructor(EmailBackend):
    """Takes options of its own."""

    def __init__(self, tenant: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tenant = tenant


def factory(**kwargs: Any) -> BaseEmailBackend:
    return EmailBackend(**kwargs)


def mailer(path: str = BACKEND, **options: Any) -> dict[str, Any]:
    return {"BACKEND": path, "OPTIONS": options}


def ids(messages: list[CheckMessage]) -> list[str | None]:
    return [message.id for message in messages]


def test_the_checks_run_with_those_about_mail() -> None:
    registered = {
        check for check in registry.registry.get_checks() if check.tags == ("mail",)
    }

    assert registered >= {
        checks.check_backends,
        checks.check_queues,
        checks.check_webhooks,
        checks.check_names,
        checks.check_other_settings,
        checks.check_distributions,
    }


def test_the_app_is_named_as_designed() -> None:
    config = apps.get_app_config("django_lettermint")

    assert isinstance(config, LettermintConfig)
    assert (config.name, config.verbose_name) == ("django_lettermint", "Lettermint")


def test_the_ids_are_unique_and_in_our_own_space() -> None:
    values = [identity.value for identity in checks.Id]

    assert len(set(values)) == len(values)
    assert all(value.startswith("lettermint_smtp.") for value in values)


def test_a_project_that_sends_elsewhere_is_left_alone() -> None:
    assert checks.check_backends() == []


@override_settings(EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN=TOKEN)
def test_right_settings_pass() -> None:
    assert run_checks(tags=["mail"]) == []


@override_settings(EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN="to ken")
def test_a_wrong_setting_of_email_backend_is_an_error() -> None:
    (message,) = checks.check_backends()

    assert message.id == "lettermint_smtp.E001"
    assert message.is_serious()
    assert message.msg.startswith("LETTERMINT_API_TOKEN must be a string of printable")
    assert "to ken" not in str(message)


@override_settings(EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN=TOKEN, LETTERMINT_PORT=0)
def test_the_check_says_what_sending_would_raise() -> None:
    (message,) = checks.check_backends()

    with pytest.raises(ImproperlyConfigured) as raised:
        EmailBackend()

    assert message.msg == str(raised.value)


@override_settings(EMAIL_BACKEND=BACKEND)
def test_manage_py_check_fails_without_a_token() -> None:
    with pytest.raises(CommandError, match=r"lettermint_smtp\.E001"):
        call_command("check", "--tag", "mail", stderr=StringIO())


@override_settings(
    MAILERS={
        "default": mailer(api_token=TOKEN),
        "news": mailer(api_token=TOKEN, port="465"),
        "bulk": mailer(f"{__name__}.Subclass"),
        "other": mailer("django.core.mail.backends.dummy.EmailBackend", port="x"),
        "smtp": {},
    }
)
def test_each_mailer_of_ours_is_checked() -> None:
    first, second = checks.check_backends()

    assert first.msg.startswith("MAILERS['news']['OPTIONS']['port'] must be a whole")
    assert "api_token is not set" in second.msg
    assert ids([first, second]) == ["lettermint_smtp.E001"] * 2


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (BACKEND, True),
        (f"{__name__}.Subclass", True),
        (f"{__name__}.OwnConstructor", False),
        (f"{__name__}.factory", False),
        ("django.core.mail.backends.smtp.EmailBackend", False),
        ("django_lettermint.backend.Missing", False),
        ("no dots", False),
    ],
)
def test_what_takes_our_options_is_checked(path: str, *, expected: bool) -> None:
    with override_settings(MAILERS={"default": mailer(path)}):
        assert bool(checks.check_backends()) is expected


@override_settings(EMAIL_BACKEND=BACKEND, MAILERS={"default": mailer("some.Other")})
def test_email_backend_counts_where_django_uses_it() -> None:
    assert len(checks.check_backends()) == (0 if MAILERS_DECIDE else 1)


@override_settings(EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN=TOKEN)
def test_reading_the_settings_warns_of_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert checks.check_backends() == []

    assert caught == []


@override_settings(
    EMAIL_BACKEND=BACKEND,
    LETTERMINT_API_TOKEN=TOKEN,
    LETTERMINT_HOST="127.0.0.1",
    LETTERMINT_SECURITY="plaintext",
)
def test_plaintext_is_a_warning() -> None:
    (message,) = checks.check_backends()

    assert message.id == "lettermint_smtp.W001"
    assert message.msg.startswith("EMAIL_BACKEND sends mail and the token unencrypted")
    # A local relay, as lettermint_relay is one.
    with override_settings(DEBUG=True):
        assert checks.check_backends() == []


@override_settings(
    MAILERS={"default": mailer(api_token=TOKEN, signing_secret="whsec_1")}
)
def test_a_webhook_secret_in_a_mailer_is_a_warning() -> None:
    (message,) = checks.check_backends()

    assert message.id == "lettermint_smtp.W005"
    assert message.msg.startswith("MAILERS['default']['OPTIONS']['signing_secret'] has")
    assert message.hint == "Set LETTERMINT_SIGNING_SECRET instead."


@override_settings(
    EMAIL_BACKEND=BACKEND,
    LETTERMINT_API_TOKEN=TOKEN,
    LETTERMINT_SEND_DEFAULTS={"from_email": "us@example.com"},
)
def test_a_default_sender_is_a_warning() -> None:
    assert ids(checks.check_backends()) == ["lettermint_smtp.W006"]


def test_checking_changes_no_mailer() -> None:
    mailers = {"default": mailer(api_token=TOKEN)}

    with override_settings(MAILERS=mailers):
        checks.check_backends()

    assert mailers == {"default": mailer(api_token=TOKEN)}


@override_settings(
    EMAIL_BACKEND=BACKEND,
    ANYMAIL={"LETTERMINT_API_TOKEN": TOKEN, "IDNA_ENCODER": "nope"},
)
def test_a_wrong_setting_of_anymail_is_an_error() -> None:
    (message,) = checks.check_backends()

    assert message.id == "lettermint_smtp.E001"
    assert "IDNA_ENCODER" in message.msg


class Broken(EmailBackend):
    """Cannot be made."""

    def __new__(cls, **kwargs: Any) -> Broken:
        raise LookupError("no such row")


@override_settings(EMAIL_BACKEND=f"{__name__}.Broken", LETTERMINT_API_TOKEN=TOKEN)
def test_whatever_each_mail_would_raise_is_an_error() -> None:
    (message,) = checks.check_backends()

    assert message.id == "lettermint_smtp.E001"
    assert message.msg == "LookupError: no such row"


@override_settings(
    EMAIL_BACKEND=BACKEND, ANYMAIL={"LETTERMINT_API_TOKEN": TOKEN, "SEND_DEFAULTS": 7}
)
def test_wrong_defaults_for_all_of_anymail_are_an_error() -> None:
    (message,) = checks.check_backends()

    assert message.msg.startswith("ANYMAIL['SEND_DEFAULTS'] must be a dict")


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
    ],
    ids=str,
)
def test_settings_that_django_refuses_are_left_to_it(
    mail_settings: dict[str, object],
) -> None:
    with override_settings(LETTERMINT_API_TOKEN=TOKEN, **mail_settings):
        assert checks.check_backends() == checks.check_queues() == []


@override_settings(LETTERMINT_WEBHOOK_DEDUPE="no")
def test_a_wrong_setting_of_webhooks_is_an_error() -> None:
    (message,) = checks.check_webhooks()

    assert message.id == "lettermint_smtp.E002"
    assert message.msg.startswith("LETTERMINT_WEBHOOK_DEDUPE must be True or False")


@override_settings(ANYMAIL=["LETTERMINT_SIGNING_SECRET"])
def test_settings_that_no_webhook_could_read_are_an_error() -> None:
    assert ids(checks.check_webhooks()) == ["lettermint_smtp.E002"]


@override_settings(ANYMAIL=None, LETTERMINT_API_TOKEN=TOKEN, EMAIL_BACKEND=BACKEND)
def test_an_anymail_of_none_is_none() -> None:
    assert run_checks(tags=["mail"]) == []
    assert EmailBackend().config.endpoint.token == Secret(TOKEN)


@override_settings(ANYMAIL={"LETTERMINT_SIGNING_SECRET": ""})
@pytest.mark.parametrize(
    ("urlconf", "expected"),
    [("tests.urls", []), ("tests.webhook_urls", ["lettermint_smtp.W004"])],
)
def test_an_empty_secret_is_none(urlconf: str, expected: list[str]) -> None:
    with override_settings(ROOT_URLCONF=urlconf):
        assert ids(checks.check_webhooks()) == expected


@override_settings(ANYMAIL={"LETTERMINT_SIGNING_SECRET": ["whsec_1", ""]})
def test_an_empty_entry_among_secrets_is_an_error() -> None:
    (message,) = checks.check_webhooks()

    assert message.id == "lettermint_smtp.E002"
    assert message.msg.startswith("ANYMAIL['LETTERMINT_SIGNING_SECRET'] must be")


@override_settings(ROOT_URLCONF="tests.webhook_urls")
def test_webhook_urls_without_a_secret_are_a_warning() -> None:
    (message,) = checks.check_webhooks()

    assert message.id == "lettermint_smtp.W004"
    assert "anymail/lettermint/tracking/ and anymail/lettermint/inbound/" in message.msg


class Urls:
    """A URLconf in place of a module."""

    def __init__(self, *urlpatterns: URLPattern | URLResolver) -> None:
        self.urlpatterns = urlpatterns


class OwnView(LettermintTrackingWebhookView):
    """A view of the project's own."""


class ViewWithSecret(LettermintTrackingWebhookView):
    """Its secret is an attribute."""

    signing_secret = "whsec_own"


class ViewWithSecrets(LettermintTrackingWebhookView):
    """Its secrets are an attribute."""

    signing_secret = ("whsec_own", Secret("whsec_older"))


class ViewWithoutSecret(LettermintTrackingWebhookView):
    """Its secret is an empty variable's."""

    signing_secret = ""


class ViewWithProperty(LettermintTrackingWebhookView):
    """Its secret is known for a request only."""

    @property
    def signing_secret(self) -> str:  # type: ignore[override]
        raise AssertionError("a check has no request")


class ViewWithSetup(LettermintTrackingWebhookView):
    """Its secret is set for each request."""

    def setup(self, request: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a check has no request")


def hook(
    view: type[LettermintWebhookView] = LettermintTrackingWebhookView, **options: Any
) -> URLPattern:
    return path("hook/", view.as_view(**options))


@pytest.mark.parametrize(
    "urls",
    [
        Urls(hook(LettermintInboundWebhookView)),
        Urls(hook(OwnView)),
        Urls(path("mail/", include(([hook()], "mail"), namespace="mail"))),
        Urls(hook(signing_secret="whsec_own"), hook()),
        Urls(hook(signing_secret=None)),
        Urls(hook(ViewWithoutSecret)),
    ],
)
def test_a_webhook_without_a_secret_is_found_wherever_it_is(urls: Urls) -> None:
    with override_settings(ROOT_URLCONF=urls):
        assert ids(checks.check_webhooks()) == ["lettermint_smtp.W004"]


@pytest.mark.parametrize(
    "view",
    [
        hook(signing_secret="whsec_own"),
        *map(hook, [ViewWithSecret, ViewWithSecrets, ViewWithProperty, ViewWithSetup]),
    ],
)
def test_a_webhook_with_a_secret_of_its_own_passes(view: URLPattern) -> None:
    with override_settings(ROOT_URLCONF=Urls(view)):
        assert checks.check_webhooks() == []


@pytest.mark.parametrize("secret", [7, ["whsec_1", ""], "two words", b"whsec_1"])
def test_an_odd_secret_of_a_view_is_an_error_that_names_the_url(secret: Any) -> None:
    class Odd(LettermintTrackingWebhookView):
        signing_secret = secret

    with override_settings(ROOT_URLCONF=Urls(hook(Odd))):
        [message] = checks.check_webhooks()

    assert message.id == "lettermint_smtp.E002"
    assert "signing_secret" in message.msg
    assert message.hint == "The webhook at hook/ raises this error."


@override_settings(
    ROOT_URLCONF="tests.webhook_urls", LETTERMINT_SIGNING_SECRET="whsec_1"
)
@pytest.mark.parametrize(
    ("webhooks", "options", "expected"),
    [
        ("django_message_id", {"correlation_key": "id"}, ["lettermint_smtp.W007"]),
        ("id", {"correlation_key": "id"}, []),
        ("django_message_id", {"correlation_key": None}, []),
        ("id", {}, []),
    ],
)
def test_a_mailer_whose_ids_webhooks_do_not_find_is_a_warning(
    webhooks: str, options: dict[str, Any], expected: list[str]
) -> None:
    with override_settings(
        LETTERMINT_CORRELATION_KEY=webhooks,
        MAILERS={"default": mailer(**options)},
    ):
        assert ids(checks.check_webhooks()) == expected


@override_settings(
    MAILERS={"default": mailer(correlation_key="id")}, LETTERMINT_API_TOKEN=TOKEN
)
def test_without_webhook_urls_a_mailers_ids_are_its_own() -> None:
    assert checks.check_webhooks() == []


@override_settings(
    ROOT_URLCONF="tests.webhook_urls", LETTERMINT_SIGNING_SECRET="whsec_1"
)
def test_webhook_urls_with_a_secret_pass() -> None:
    assert checks.check_webhooks() == []


@pytest.mark.parametrize("urlconf", ["tests.urls", None])
def test_without_webhook_urls_no_secret_is_needed(urlconf: str | None) -> None:
    with override_settings(ROOT_URLCONF=urlconf):
        assert checks.check_webhooks() == []


@override_settings(
    LETTERMINT_API_KEY=TOKEN, ANYMAIL_LETTERMINT_PROT=1, LETTERMINT_PORT=465
)
def test_an_unknown_setting_is_a_warning_with_a_suggestion() -> None:
    prot, key = sorted(checks.check_names(), key=lambda message: message.msg)

    assert ids([prot, key]) == ["lettermint_smtp.W002"] * 2
    assert (
        prot.msg
        == "ANYMAIL_LETTERMINT_PROT is not a setting of django-lettermint-smtp."
    )
    assert prot.hint == "Did you mean 'LETTERMINT_PORT'?"
    assert key.hint == "Did you mean 'LETTERMINT_API_TOKEN'?"
    assert TOKEN not in f"{prot} {key}"


LEFT_OVER = {
    "EMAIL_HOST": "smtp.lettermint.co",
    "EMAIL_PORT": 587,
    "EMAIL_HOST_USER": "lettermint",
    "EMAIL_HOST_PASSWORD": TOKEN,
    "EMAIL_USE_TLS": True,
    "EMAIL_USE_SSL": False,
    "EMAIL_TIMEOUT": 5,
    "EMAIL_SSL_CERTFILE": "ca.pem",
    "EMAIL_SSL_KEYFILE": "key.pem",
}
REPLACED = pytest.mark.filterwarnings("ignore:The EMAIL_")


def in_use(*paths: str) -> dict[str, Any]:
    """Return settings with which these backends, and no others, send."""
    if not MAILERS_DECIDE:
        return {"EMAIL_BACKEND": paths[0]}
    return {
        "MAILERS": {f"m{number}": mailer(path) for number, path in enumerate(paths)}
    }


@REPLACED
@pytest.mark.parametrize("path", [BACKEND, QUEUE, f"{__name__}.OwnConstructor"])
def test_settings_of_djangos_backend_are_one_warning(path: str) -> None:
    with override_settings(**in_use(path), **LEFT_OVER):
        (message,) = checks.check_other_settings()

    assert message.id == "lettermint_smtp.W008"
    assert all(name in message.msg for name in LEFT_OVER)
    assert "LETTERMINT_API_TOKEN for EMAIL_HOST_PASSWORD" in str(message.hint)
    assert "LETTERMINT_SECURITY for EMAIL_USE_TLS" in str(message.hint)
    assert TOKEN not in str(message)


@REPLACED
@pytest.mark.parametrize("name", LEFT_OVER)
def test_a_setting_of_djangos_backend_is_named_alone(name: str) -> None:
    with override_settings(**in_use(BACKEND), **{name: LEFT_OVER[name]}):
        (message,) = checks.check_other_settings()

    assert message.msg.endswith(f": {name}.")


@override_settings(EMAIL_SUBJECT_PREFIX="[Shop] ", EMAIL_USE_LOCALTIME=True)
def test_settings_of_messages_have_an_effect() -> None:
    with override_settings(**in_use(BACKEND)):
        assert checks.check_other_settings() == []


@REPLACED
@pytest.mark.parametrize(
    "paths",
    [
        ["django.core.mail.backends.smtp.EmailBackend", BACKEND],
        ["no.such.Backend", BACKEND],
        [f"{__name__}.factory"],
    ],
)
def test_another_backend_may_need_its_settings(paths: list[str]) -> None:
    with override_settings(**in_use(*paths), **LEFT_OVER):
        assert checks.check_other_settings() == []


@REPLACED
@override_settings(**LEFT_OVER)
def test_without_a_backend_of_ours_no_setting_is_left_over() -> None:
    assert checks.check_other_settings() == []


def test_what_is_installed_here_does_not_clash() -> None:
    assert checks.check_distributions() == []


@pytest.mark.parametrize(
    "names", [[], ["django-lettermint-smtp"], ["Django_Lettermint.SMTP"] * 2]
)
def test_our_own_distribution_does_not_clash(names: list[str]) -> None:
    assert checks.check_distributions(packages={"django_lettermint": names}) == []


def test_another_distribution_of_the_same_package_is_a_warning() -> None:
    packages = {"django_lettermint": ["django-lettermint-smtp", "django-lettermint"]}

    (message,) = checks.check_distributions(packages=packages)

    assert message.id == "lettermint_smtp.W003"
    assert message.msg.startswith("django-lettermint installs a package")


@override_settings(LETTERMINT_API_TOKEN=TOKEN, LETTERMINT_QUEUE_NAME="nowhere")
def test_a_queue_that_could_take_nothing_is_an_error() -> None:
    mailers = {"default": mailer(QUEUE, using="relay"), "relay": mailer()}
    mail_settings = {"MAILERS": mailers} if MAILERS_DECIDE else {"EMAIL_BACKEND": QUEUE}
    with override_settings(**mail_settings):
        [found] = checks.check_queues()

    assert found.id == checks.Id.INVALID_BACKEND
    assert "'nowhere'" in found.msg


@override_settings(LETTERMINT_API_TOKEN=TOKEN)
def test_a_queue_that_works_is_none() -> None:
    mailers = {"default": mailer(QUEUE, using="relay"), "relay": mailer()}
    mail_settings = {"MAILERS": mailers} if MAILERS_DECIDE else {"EMAIL_BACKEND": QUEUE}
    with override_settings(**mail_settings):
        assert checks.check_queues() == []


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
"""
NO_TASKS = "import sys; sys.modules |= {'django.tasks': None, 'django_tasks': None}"
CHECK = "call_command('check')"


def project(*lines: str, backend: str) -> subprocess.CompletedProcess[str]:
    """Run code in a project whose TASKS have no place for mail."""
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines), backend],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("before", ["", NO_TASKS])
def test_projects_that_never_queue_need_no_tasks(before: str) -> None:
    lines = (before, PROJECT, "import django_lettermint.tasks", CHECK)

    done = project(*lines, backend=BACKEND)

    assert done.returncode == 0, done.stderr


def test_tasks_without_a_default_queue_are_an_error_of_those_who_queue() -> None:
    done = project(PROJECT, CHECK, backend=QUEUE)

    assert "lettermint_smtp.E001" in done.stderr
    assert "no backend 'default' with a queue 'default'" in done.stderr


def test_without_the_task_framework_the_error_names_the_extra() -> None:
    done = project(NO_TASKS, PROJECT, CHECK, backend=QUEUE)

    assert "lettermint_smtp.E001" in done.stderr
    assert 'pip install "django-lettermint-smtp[tasks]"' in done.stderr


if MAILERS_DECIDE:

    def test_a_queue_whose_sender_is_mistyped_is_an_error() -> None:
        mailers = {
            "default": mailer(QUEUE, using="relay"),
            "relay": mailer("django_lettermint.backnd.EmailBackend"),
        }
        with override_settings(MAILERS=mailers):
            [found] = checks.check_queues()

        assert found.id == checks.Id.INVALID_BACKEND
        assert "`using` is 'relay'" in found.msg


# -- tenants -----------------------------------------------------------------------------


def tenants(name: str) -> Mapping[str, object]:
    """Know "acme"; nothing is known of others while the database is away."""
    if name == "away":
        raise ConnectionError
    return {"acme": {"api_token": TOKEN}, "odd": {"token": TOKEN}}[name]


@pytest.mark.parametrize("path", ["nowhere.tenants", f"{__name__}.TOKEN", 5])
def test_a_resolver_that_is_no_function_is_an_error(path: object) -> None:
    settings = {"LETTERMINT_API_TOKEN": TOKEN, "LETTERMINT_TENANTS": path}
    with override_settings(EMAIL_BACKEND=BACKEND, **settings):
        (message,) = checks.check_backends()
        (of_webhooks,) = checks.check_webhooks()

    assert message.id == "lettermint_smtp.E001"
    assert message.msg.startswith("LETTERMINT_TENANTS must be ")
    assert of_webhooks.id == "lettermint_smtp.E002"


@override_settings(
    EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN=TOKEN, LETTERMINT_TENANT="acme"
)
def test_a_tenant_without_a_resolver_is_an_error() -> None:
    (message,) = checks.check_backends()

    assert message.id == "lettermint_smtp.E003"
    assert message.msg.startswith("EMAIL_BACKEND has the option `tenant`, 'acme', but")
    assert checks.check_tenants() == []


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
    settings = {"LETTERMINT_TENANTS": tenants, "LETTERMINT_TENANT": name}
    with override_settings(
        EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN=TOKEN, **settings
    ):
        assert checks.check_backends() == []
        assert run_checks(tags=["mail"]) == []
        found = checks.check_tenants()

    assert ids(found) == ["lettermint_smtp.W009"] * len(problems)
    assert all(text in each.msg for text, each in zip(problems, found, strict=True))
    assert TOKEN not in str(found)
    every = {
        getattr(each, "__name__", ""): each.tags
        for each in registry.registry.get_checks()
    }
    assert every["check_tenants"] == ("database",)


@override_settings(EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN="to ken")
def test_other_errors_are_left_to_the_other_checks() -> None:
    assert checks.check_tenants() == []


@pytest.mark.parametrize(
    ("resolver", "expected"), [(None, ["lettermint_smtp.W004"]), (tenants, [])]
)
def test_webhooks_of_tenants_need_a_resolver(
    resolver: object, expected: list[str]
) -> None:
    own = path("x/", include([path("", LettermintTrackingWebhookView.as_view())]))
    urls: list[URLPattern | URLResolver] = [
        path("of/<str:tenant>/", include("django_lettermint.urls")),
        path("<int:tenant>/", LettermintTrackingWebhookView.as_view()),
        path("acme/", include("django_lettermint.urls"), {"tenant": "acme"}),
        path("globex/", LettermintTrackingWebhookView.as_view(), {"tenant": "globex"}),
        path("<str:tenant>/", include([own])),
    ]
    for each in urls:
        with override_settings(ROOT_URLCONF=Urls(each), LETTERMINT_TENANTS=resolver):
            found = checks.check_webhooks()
        assert ids(found) == expected
        assert all("LETTERMINT_TENANTS" in (message.hint or "") for message in found)


@override_settings(LETTERMINT_TENANTS=tenants)
def test_urls_without_a_tenant_still_need_the_secret() -> None:
    urls = Urls(
        path("of/<str:tenant>/", include("django_lettermint.urls")),
        path("", include("django_lettermint.urls")),
    )
    with override_settings(ROOT_URLCONF=urls):
        (message,) = checks.check_webhooks()

    assert message.id == "lettermint_smtp.W004"
    assert "at lettermint/tracking/ and lettermint/inbound/: all" in message.msg


def test_tenants_of_other_backends_are_left_alone() -> None:
    assert checks.check_tenants() == []
