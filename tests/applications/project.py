"""A Django project with one application, which sends to the relay of the test.

APPLICATION_RELAY     the relay's options as JSON
APPLICATION_SETTINGS  MAILERS or EMAIL_BACKEND: the setting that names our backend
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command

SENDS = "django_lettermint.backend.EmailBackend"
MAILERS = os.environ["APPLICATION_SETTINGS"] == "MAILERS"


class _NoMigrations:
    """Creates the tables of all models without migrations."""

    def __contains__(self, label: str) -> bool:
        return True

    def __getitem__(self, label: str) -> None:
        return None


def start(
    *apps: str,
    queue: str = "",
    queue_options: dict[str, object] | None = None,
    **own: Any,
) -> None:
    """Set up a project with Django's apps, these, and mail to the relay.

    `queue` is the application's own backend, which passes mail to ours.
    """
    # Deprecations in applications that support older versions of Django.
    warnings.simplefilter("ignore")
    settings.configure(
        SECRET_KEY="applications",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="__main__",
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        DEFAULT_FROM_EMAIL="shop@example.com",
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        },
        MIGRATION_MODULES=_NoMigrations(),
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "django_lettermint",
            *apps,
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        **_mail(queue, queue_options or {}),
        **own,
    )
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)


def _mail(queue: str, queue_options: dict[str, object]) -> dict[str, Any]:
    relay = json.loads(os.environ["APPLICATION_RELAY"])
    ours = {"BACKEND": SENDS, "OPTIONS": relay}
    if not MAILERS:
        bare = {f"LETTERMINT_{name.upper()}": value for name, value in relay.items()}
        return {"EMAIL_BACKEND": queue or SENDS, **bare}
    if not queue:
        return {"MAILERS": {"default": ours}}
    default = {"BACKEND": queue, "OPTIONS": queue_options}
    return {"MAILERS": {"default": default, "relay": ours}}
