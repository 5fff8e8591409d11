"""Find the backend that a project's mail goes through."""

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

    Raises Failed if it cannot be made or is another package's.
    """
    if alias is not None and alias not in _mailers():
        raise _unknown(alias)
    try:
        backend = _MAILERS[alias or "default"] if _MAILERS else mail.get_connection()
    except (ImproperlyConfigured, ImportError) as error:
        raise Failed(error, "settings") from None
    if isinstance(backend, EmailBackend):
        return backend
    raise _foreign(backend, alias)


def _unknown(alias: str) -> Failed:
    if known := ", ".join(map(repr, _mailers())):
        what = f"--using {alias} is not in MAILERS, which has {known}"
        return Failed(
            LookupError(what), "options", "Use one of these, or omit --using."
        )
    what = (
        f"--using {alias} needs the setting MAILERS of Django 6.1 and later (this is "
        f"Django {django.get_version()})"
    )
    return Failed(LookupError(what), "options", "Omit --using to test EMAIL_BACKEND.")


def _foreign(backend: BaseEmailBackend, alias: str | None) -> Failed:
    mailers = _mailers()
    place = (
        f"MAILERS[{alias or 'default'!r}]['BACKEND']" if mailers else "EMAIL_BACKEND"
    )
    kind = type(backend)
    error = ImproperlyConfigured(
        f"{place} is {kind.__module__}.{kind.__qualname__}: this mail does not go "
        "through Lettermint. Nothing was sent"
    )
    remedy = f"Set {place} to {BACKEND!r}"
    ours = [
        name for name, mailer in mailers.items() if mailer.get("BACKEND") == BACKEND
    ]
    if ours:
        remedy += f", or test a mailer that does: --using {ours[0]}"
    return Failed(error, "settings", f"{remedy}.")


def _mailers() -> dict[str, Any]:
    """Return the setting MAILERS; empty if Django knows none."""
    return _MAILERS.settings if _MAILERS else {}
