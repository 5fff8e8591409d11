"""Settings of the example: everything about mail comes from the environment.

LETTERMINT_API_TOKEN        the project's sending token
LETTERMINT_FROM_EMAIL       the sender; Lettermint must know its domain
LETTERMINT_SIGNING_SECRET   the webhook's secret, whsec_…
LETTERMINT_NORTH_TOKEN, _SOUTH_TOKEN   the tokens of two tenants' projects
LETTERMINT_HOST, _PORT, _SECURITY, _CA_FILE   a relay other than Lettermint's
EXAMPLE_DATABASE            the SQLite file
EXAMPLE_INBOX               the address of the local relay's inbox
"""

from __future__ import annotations

import os
from pathlib import Path

import django

BASE_DIR = Path(__file__).resolve().parent.parent

# -- Mail ------------------------------------------------------------------------------

BACKEND = "django_lettermint.backend.EmailBackend"

LETTERMINT: dict[str, object] = {
    name: os.environ[variable]
    for name in ("api_token", "host", "security", "ca_file")
    if os.environ.get(variable := f"LETTERMINT_{name.upper()}")
}
if port := os.environ.get("LETTERMINT_PORT"):
    LETTERMINT["port"] = int(port)

# Your project needs only one of the two styles.
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": BACKEND, "OPTIONS": LETTERMINT}}
    ANYMAIL = {}
else:
    EMAIL_BACKEND = BACKEND
    ANYMAIL = {f"LETTERMINT_{name.upper()}": LETTERMINT[name] for name in LETTERMINT}

# Webhooks do not belong to a mailer, so their secret is here in both styles.
if secret := os.environ.get("LETTERMINT_SIGNING_SECRET"):
    ANYMAIL["LETTERMINT_SIGNING_SECRET"] = secret

# Two tenants. In your project, a function reads them from a database.
TENANTS = {
    name: {"api_token": os.environ.get(f"LETTERMINT_{name.upper()}_TOKEN")}
    for name in ("north", "south")
}
LETTERMINT_TENANTS = TENANTS.__getitem__

DEFAULT_FROM_EMAIL = os.environ.get("LETTERMINT_FROM_EMAIL", "shop@example.com")

INBOX = os.environ.get("EXAMPLE_INBOX", "")

# -- The rest is as in any Django project ----------------------------------------------

# For this machine only: a real site has a secret key, and DEBUG off.
SECRET_KEY = "the example's key, which is public"
DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = [
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_lettermint",
    "outbox",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"
ROOT_URLCONF = "config.urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.messages.context_processors.messages",
                "outbox.views.links",
            ],
        },
    },
]
WSGI_APPLICATION = "config.wsgi.application"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("EXAMPLE_DATABASE", BASE_DIR / "db.sqlite3"),
        # Receivers of signals and webhooks write from several threads at once.
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL",
        },
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
USE_TZ = True
# The pages convert times to the time zone of the browser.
TIME_ZONE = "UTC"
