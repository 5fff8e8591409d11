"""System checks: what `manage.py check` says about the settings, before a mail fails."""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import packages_distributions
from typing import Any

from anymail.exceptions import AnymailConfigurationError
from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.urls import NoReverseMatch, reverse
from django.utils.module_loading import import_string

from .conf import WEBHOOK_OPTIONS, backend_config, webhook_config
from .lookup import unknown_settings

BACKEND = "django_lettermint.backend.EmailBackend"
QUEUE = "django_lettermint.tasks.EmailBackend"
DISTRIBUTION = "django-lettermint-smtp"
WEBHOOK_URL = "lettermint_tracking_webhook"


class Id(enum.StrEnum):
    """The ids, to be silenced by SILENCED_SYSTEM_CHECKS."""

    INVALID_BACKEND = "lettermint_smtp.E001"
    INVALID_WEBHOOKS = "lettermint_smtp.E002"
    PLAINTEXT = "lettermint_smtp.W001"
    UNKNOWN_SETTING = "lettermint_smtp.W002"
    OTHER_DISTRIBUTION = "lettermint_smtp.W003"
    NO_SIGNING_SECRET = "lettermint_smtp.W004"  # noqa: S105 -- an id
    WEBHOOK_OPTION = "lettermint_smtp.W005"
    FROM_EMAIL = "lettermint_smtp.W006"


def check_backends(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    """Report what sending through EMAIL_BACKEND or a mailer would raise or ignore."""
    return [
        message
        for place, path, options in _mailers()
        if _is_ours(path, BACKEND)
        for message in _check_backend(place, options)
    ]


def check_queues(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    """Report what queueing mail would raise."""
    found: list[CheckMessage] = []
    for _, path, options in _mailers():
        if not _is_ours(path, QUEUE):
            continue
        try:
            import_string(path)(**options)
        except AnymailConfigurationError as error:
            hint = "Every mail queued this way raises this error."
            found.append(Error(str(error), hint=hint, id=Id.INVALID_BACKEND))
    return found


def _check_backend(place: str, options: dict[str, Any]) -> Iterator[CheckMessage]:
    ineffective = [name for name in WEBHOOK_OPTIONS if name in options]
    try:
        config = backend_config(options)
    except AnymailConfigurationError as error:
        hint = "Every mail sent this way raises this error."
        yield Error(str(error), hint=hint, id=Id.INVALID_BACKEND)
        return
    if config.relay.security == "plaintext":
        yield CheckWarning(
            f"{place} sends mail and token in clear, though only to this machine.",
            hint='Keep security="plaintext" out of production.',
            id=Id.PLAINTEXT,
        )
    for name in ineffective:
        yield CheckWarning(
            f"{place}['OPTIONS'][{name!r}] has no effect: webhooks know no mailer.",
            hint=f"Set LETTERMINT_{name.upper()} instead.",
            id=Id.WEBHOOK_OPTION,
        )
    if "from_email" in config.send_defaults:
        yield CheckWarning(
            f"{place} has a from_email in send_defaults, which no message needs: each "
            "has a sender of its own.",
            hint="Set DEFAULT_FROM_EMAIL instead.",
            id=Id.FROM_EMAIL,
        )


def _mailers() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Find which backends are in use, with the keywords that they will get."""
    with warnings.catch_warnings():
        # Reading it is deprecated in Django 6.1, where it is absent besides MAILERS.
        warnings.filterwarnings("ignore", "The EMAIL_BACKEND setting is deprecated")
        yield "EMAIL_BACKEND", getattr(settings, "EMAIL_BACKEND", ""), {}
    for alias, mailer in getattr(settings, "MAILERS", {}).items():
        options = {**mailer.get("OPTIONS", {}), "alias": alias}
        yield f"MAILERS[{alias!r}]", mailer.get("BACKEND", ""), options


def _is_ours(path: str, backend: str) -> bool:
    """Tell whether a path leads to our backend or a subclass that takes its options."""
    try:
        found = import_string(path)
        ours = import_string(backend)
    except ImportError:
        return False
    # A subclass with a constructor of its own may have options of its own.
    return (
        isinstance(found, type)
        and issubclass(found, ours)
        and found.__init__ is ours.__init__  # type: ignore[misc]  # only compared
    )


def check_webhooks(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    """Report webhook settings that are wrong, or missing for installed URLs."""
    try:
        config = webhook_config()
    except AnymailConfigurationError as error:
        hint = "Webhooks raise this error."
        return [Error(str(error), hint=hint, id=Id.INVALID_WEBHOOKS)]
    if config.signing_secrets or not _has_webhook_urls():
        return []
    return [
        CheckWarning(
            "The webhook URLs are installed, but there is no secret to verify events "
            "with: all of them are refused.",
            hint="Set LETTERMINT_SIGNING_SECRET to the webhook's secret, whsec_…",
            id=Id.NO_SIGNING_SECRET,
        )
    ]


def _has_webhook_urls() -> bool:
    if not getattr(settings, "ROOT_URLCONF", None):
        return False
    with suppress(NoReverseMatch):
        return bool(reverse(WEBHOOK_URL))
    return False


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
