"""Which backend a project's mail goes through, and whether it is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django
from django.core import mail
from django.core.exceptions import ImproperlyConfigured

from django_lettermint.backend import EmailBackend
from django_lettermint.checks import BACKEND

from .next_steps import Failed

if TYPE_CHECKING:
    from django.core.mail.backends.base import BaseEmailBackend

#: Django's handler of MAILERS; None before Django 6.1.
_MAILERS: Any = getattr(mail, "mailers", None)


def find_backend(alias: str | None) -> EmailBackend:
    """Make the backend of a mailer or, without an alias, of the project's default.

    Raises Failed if that is impossible or another package's.
    """
    try:
        backend = _make(alias)
    except (ImproperlyConfigured, ImportError) as error:
        raise Failed(error, "settings") from None
    if isinstance(backend, EmailBackend):
        return backend
    mailers = _mailers()
    place = (
        f"MAILERS[{alias or 'default'!r}]['BACKEND']" if mailers else "EMAIL_BACKEND"
    )
    kind = type(backend)
    foreign = ImproperlyConfigured(
        f"{place} is {kind.__module__}.{kind.__qualname__}: this mail does not go "
        "through Lettermint. Nothing was sent"
    )
    remedy = f"Set {place} to {BACKEND!r}"
    ours = [
        name for name, mailer in mailers.items() if mailer.get("BACKEND") == BACKEND
    ]
    if ours:
        remedy += f", or test a mailer that does: --using {ours[0]}"
    raise Failed(foreign, "settings", f"{remedy}.")


def _make(alias: str | None) -> BaseEmailBackend:
    if _MAILERS is None:
        if alias is not None:
            raise ImproperlyConfigured(
                "--using names one of Django 6.1's MAILERS, and this is Django "
                f"{django.get_version()}. Leave it out to test EMAIL_BACKEND"
            )
        return mail.get_connection()
    known = _mailers()
    if alias is not None and alias not in known:
        names = ", ".join(map(repr, known)) or "no mailers"
        raise ImproperlyConfigured(f"MAILERS has {names}, not {alias!r}")
    backend: BaseEmailBackend = _MAILERS[alias or "default"]
    return backend


def _mailers() -> dict[str, Any]:
    """Return the setting MAILERS; empty if Django knows none."""
    return _MAILERS.settings if _MAILERS else {}
