"""System checks: `manage.py check` reports wrong settings before a mail fails."""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING, Any, TypeGuard

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils.module_loading import import_string

from .conf import WEBHOOK_OPTIONS, unknown_settings, webhook_config
from .exceptions import LettermintInvalidMessage

if TYPE_CHECKING:
    from .conf import WebhookConfig

BACKEND = "django_lettermint.backend.EmailBackend"
QUEUE = "django_lettermint.tasks.EmailBackend"
DISTRIBUTION = "django-lettermint-smtp"
WEBHOOK_VIEW = "django_lettermint.webhooks.LettermintWebhookView"

#: The settings of Django's SMTP backend, each with the one of ours that replaces it.
_OTHER_SETTINGS = {
    "EMAIL_HOST": "LETTERMINT_HOST",
    "EMAIL_PORT": "LETTERMINT_PORT",
    "EMAIL_HOST_USER": "LETTERMINT_USERNAME",
    "EMAIL_HOST_PASSWORD": "LETTERMINT_API_TOKEN",
    "EMAIL_USE_TLS": "LETTERMINT_SECURITY",
    "EMAIL_USE_SSL": "LETTERMINT_SECURITY",
    "EMAIL_TIMEOUT": "LETTERMINT_TIMEOUT",
    "EMAIL_SSL_CERTFILE": "LETTERMINT_CA_FILE",
    "EMAIL_SSL_KEYFILE": "LETTERMINT_CA_FILE",
}


class Id(enum.StrEnum):
    """The ids, to be silenced by SILENCED_SYSTEM_CHECKS."""

    INVALID_BACKEND = "lettermint_smtp.E001"
    INVALID_WEBHOOKS = "lettermint_smtp.E002"
    NO_TENANTS = "lettermint_smtp.E003"
    PLAINTEXT = "lettermint_smtp.W001"
    UNKNOWN_SETTING = "lettermint_smtp.W002"
    OTHER_DISTRIBUTION = "lettermint_smtp.W003"
    NO_SIGNING_SECRET = "lettermint_smtp.W004"  # noqa: S105 -- an id
    WEBHOOK_OPTION = "lettermint_smtp.W005"
    FROM_EMAIL = "lettermint_smtp.W006"
    CORRELATION_KEY = "lettermint_smtp.W007"
    OTHER_SETTINGS = "lettermint_smtp.W008"
    WRONG_TENANT = "lettermint_smtp.W009"


def check_backends(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    """Report what sending through EMAIL_BACKEND or a mailer would raise or ignore."""
    return [
        message
        for place, path, options in _mailers()
        if _is_ours(path, BACKEND)
        for message in _check_backend(place, path, options)
    ]


def check_queues(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    """Report what queueing mail would raise."""
    found: list[CheckMessage] = []
    for _, path, options in _mailers():
        if not _is_ours(path, QUEUE):
            continue
        try:
            import_string(path)(**options)
        except Exception as error:  # noqa: BLE001 -- each mail raises it as well
            hint = "Every mail queued this way raises this error."
            found.append(_error(error, hint, Id.INVALID_BACKEND))
    return found


def _error(error: Exception, hint: str, identity: Id) -> CheckMessage:
    known = isinstance(error, ImproperlyConfigured)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return Error(text, hint=hint, id=identity)


def _check_backend(
    place: str, path: str, options: dict[str, Any]
) -> Iterator[CheckMessage]:
    ineffective = [name for name in WEBHOOK_OPTIONS if name in options]
    try:
        backend = import_string(path)(**options)
    except Exception as error:  # noqa: BLE001 -- each mail raises it as well
        hint = "Every mail sent this way raises this error."
        yield _error(error, hint, Id.INVALID_BACKEND)
        return
    if backend.config.endpoint.security == "plaintext" and not settings.DEBUG:
        yield CheckWarning(
            f"{place} sends mail and the token unencrypted, though only to this machine.",
            hint='Keep security="plaintext" out of production.',
            id=Id.PLAINTEXT,
        )
    if backend.tenant is not None and not backend.has_tenants:
        yield Error(
            f"{place} has the option `tenant`, {backend.tenant!r}, but not `tenants`, "
            "which finds its token.",
            hint="Every mail sent this way is refused.",
            id=Id.NO_TENANTS,
        )
    for name in ineffective:
        yield CheckWarning(
            f"{place}['OPTIONS'][{name!r}] has no effect: webhooks do not belong to a mailer.",
            hint=f"Set LETTERMINT_{name.upper()} instead.",
            id=Id.WEBHOOK_OPTION,
        )
    if "from_email" in backend.send_defaults:
        yield CheckWarning(
            f"{place} has a from_email in send_defaults, which is not needed: every "
            "message has a sender.",
            hint="Set DEFAULT_FROM_EMAIL instead.",
            id=Id.FROM_EMAIL,
        )


def _mailers() -> Iterator[tuple[str, object, dict[str, Any]]]:
    """Find which backends are in use, with the keywords that they will get."""
    with warnings.catch_warnings():
        # Reading it is deprecated in Django 6.1, where it is absent besides MAILERS.
        warnings.filterwarnings("ignore", "The EMAIL_BACKEND setting is deprecated")
        path = getattr(settings, "EMAIL_BACKEND", None)
    yield "EMAIL_BACKEND", path, {}
    for alias, mailer in _mapping(getattr(settings, "MAILERS", {})).items():
        options = {**_mapping(_mapping(mailer).get("OPTIONS")), "alias": alias}
        yield f"MAILERS[{alias!r}]", _mapping(mailer).get("BACKEND"), options


def _mapping(value: object) -> Mapping[Any, Any]:
    # Django refuses other values.
    return value if isinstance(value, Mapping) else {}


def _is_a(path: object, *backends: str) -> TypeGuard[str]:
    """Return whether a path leads to one of our backends or to a subclass."""
    if not isinstance(path, str):
        return False
    try:
        found = import_string(path)
    except (ImportError, TypeError, ValueError):  # the latter two: it begins with a dot
        return False
    ours = tuple(map(import_string, backends))
    return isinstance(found, type) and issubclass(found, ours)


def _is_ours(path: object, backend: str) -> TypeGuard[str]:
    """Return whether a path leads to our backend or a subclass that takes its options."""
    # A subclass with another constructor may take other options.
    return _is_a(path, backend) and (
        import_string(path).__init__ is import_string(backend).__init__
    )


def check_tenants(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    """Report what the mail of the option `tenant` would raise.

    The look-up may use a database, so this runs with `check --database` and `migrate`
    only. It is a warning, because the tenant's row may be created later.
    """
    found: list[CheckMessage] = []
    for place, path, options in _mailers():
        if not _is_ours(path, BACKEND):
            continue
        try:
            backend = import_string(path)(**options)
            if backend.has_tenants:
                backend.usual_sender()
        except LettermintInvalidMessage as error:
            if not error.transient:  # else its table may not exist yet
                hint = (
                    f"Mail sent by {place} is refused, unless it names another tenant."
                )
                found.append(CheckWarning(str(error), hint=hint, id=Id.WRONG_TENANT))
        except Exception:  # noqa: BLE001, S112 -- which check_backends() reports
            continue
    return found


def check_webhooks(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    """Report webhook settings that are wrong, missing, or different from a mailer's."""
    try:
        config = webhook_config()
    except Exception as error:  # noqa: BLE001 -- each event raises it as well
        return [_error(error, "Webhooks raise this error.", Id.INVALID_WEBHOOKS)]
    if not getattr(settings, "ROOT_URLCONF", None):
        return []
    found: list[CheckMessage] = []
    refusing: dict[bool, list[str]] = {False: [], True: []}
    views = list(_webhook_views(get_resolver().url_patterns))
    for url, view, names_tenant in views:
        shared = config.tenants if names_tenant else config.signing_secrets
        try:
            if not _may_have_secret(view, shared):
                refusing[names_tenant].append(url)
        except Exception as error:  # noqa: BLE001 -- each event raises it as well
            hint = f"The webhook at {url} raises this error."
            found.append(_error(error, hint, Id.INVALID_WEBHOOKS))
    found += [
        _without_secret(urls, of_tenants=names_tenant)
        for names_tenant, urls in refusing.items()
        if urls
    ]
    return [*found, *_check_correlation_keys(config)] if views else []


def _webhook_views(
    entries: Iterable[URLPattern | URLResolver],
    prefix: str = "",
    *,
    names_tenant: bool = False,
) -> Iterator[tuple[str, Any, bool]]:
    """Find the URLs of our webhooks, each with its view, and whether it names a tenant."""
    ours = import_string(WEBHOOK_VIEW)
    for entry in entries:
        url = f"{prefix}{entry.pattern}"
        names = {*entry.pattern.regex.groupindex}
        if isinstance(entry, URLResolver):
            named = names_tenant or "tenant" in {*names, *entry.default_kwargs}
            yield from _webhook_views(entry.url_patterns, url, names_tenant=named)
            continue
        callback: Any = entry.callback
        view = getattr(callback, "view_class", None)
        if isinstance(view, type) and issubclass(view, ours):
            named = names_tenant or "tenant" in {*names, *entry.default_args}
            yield url, callback, named


def _may_have_secret(view: Any, shared: object) -> bool:
    """Return whether a view can verify events; raise what is wrong with its secret.

    `shared` is what it uses if the view has none.
    """
    if "signing_secret" in view.view_initkwargs:
        return bool(view.view_initkwargs["signing_secret"])
    of_class = view.view_class.signing_secret
    # A property, or what `setup()` sets, is known for a request only.
    if hasattr(type(of_class), "__get__"):
        return True
    if of_class is None:
        in_setup = view.view_class.setup is not import_string(WEBHOOK_VIEW).setup
        return in_setup or bool(shared)
    return bool(webhook_config({"signing_secret": of_class}).signing_secrets)


def _without_secret(urls: list[str], *, of_tenants: bool) -> CheckMessage:
    hint = "Set LETTERMINT_SIGNING_SECRET to the webhook's secret, whsec_…"
    if of_tenants:
        hint = (
            "Set LETTERMINT_TENANTS, which finds the secrets of the tenants in the URL."
        )
    return CheckWarning(
        f"There is no secret to verify events with at {' and '.join(urls)}: all of "
        "them are refused.",
        hint=hint,
        id=Id.NO_SIGNING_SECRET,
    )


def _check_correlation_keys(config: WebhookConfig) -> Iterator[CheckMessage]:
    for place, path, options in _mailers():
        key = options.get("correlation_key")
        if key and key != config.correlation_key and _is_ours(path, BACKEND):
            yield CheckWarning(
                f"{place}['OPTIONS']['correlation_key'] is {key!r}, but webhooks look "
                f"for {config.correlation_key!r}: they miss this mailer's message ids.",
                hint="Set LETTERMINT_CORRELATION_KEY, which both read, instead.",
                id=Id.CORRELATION_KEY,
            )


def check_names(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    """Report settings that look like ours but have no effect.

    A warning only: another package may own them.
    """
    names = {name.removeprefix("ANYMAIL_"): name for name in dir(settings)}
    return [
        CheckWarning(
            f"{names[name]} is not a setting of {DISTRIBUTION}.",
            hint=suggestion,
            id=Id.UNKNOWN_SETTING,
        )
        for name, suggestion in unknown_settings(names).items()
    ]


def check_other_settings(
    app_configs: object = None, **kwargs: Any
) -> list[CheckMessage]:
    """Report settings of Django's SMTP backend where only ours are in use."""
    paths = [path for _, path, _ in _mailers() if path is not None]
    if not paths or not all(_is_a(path, BACKEND, QUEUE) for path in paths):
        return []
    # Not by their values: reading them is deprecated in Django 6.1.
    is_set = getattr(settings, "is_overridden", lambda _: False)
    found = {name: ours for name, ours in _OTHER_SETTINGS.items() if is_set(name)}
    if not found:
        return []
    hints = ", ".join(f"{ours} for {name}" for name, ours in found.items())
    return [
        CheckWarning(
            "These settings have no effect, because no mail is sent by Django's SMTP "
            f"backend: {', '.join(found)}.",
            hint=f"Remove them. Where a default is not right, set {hints}.",
            id=Id.OTHER_SETTINGS,
        )
    ]


def check_distributions(
    app_configs: object = None,
    packages: Mapping[str, Sequence[str]] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """Report another distribution that installs a package of the same name.

    `packages` maps import packages to distributions; by default, what is installed.
    """
    if packages is None:
        packages = packages_distributions()
    found = packages.get("django_lettermint", ())
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in found}  # PEP 503
    return [
        CheckWarning(
            f"{name} installs a package django_lettermint, too: files of the two are "
            "mixed in one folder.",
            hint=f"Uninstall both, then install {DISTRIBUTION} alone.",
            id=Id.OTHER_DISTRIBUTION,
        )
        for name in sorted(names - {DISTRIBUTION})
    ]
