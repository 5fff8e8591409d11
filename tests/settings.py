"""The least a Django project needs; each test adds the mail settings it is about.

Neither EMAIL_BACKEND nor MAILERS is set here: a test may override either.
"""

from __future__ import annotations

from importlib.util import find_spec

SECRET_KEY = "tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_lettermint",
    "django_tasks_db",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
]

# Django's own since 6.0, else the backport.
_TASKS = "django.tasks" if find_spec("django.tasks") else "django_tasks"
_DUMMY = f"{_TASKS}.backends.dummy.DummyBackend"
# Not to be overridden: Django reads it once.
TASKS = {
    "default": {"BACKEND": f"{_TASKS}.backends.immediate.ImmediateBackend"},
    "dummy": {"BACKEND": _DUMMY, "QUEUES": ["default", "mail"]},
}
