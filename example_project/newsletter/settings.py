"""The example's settings, with a queue in the database.

pip install "django-lettermint-smtp[tasks]" django-tasks-db
export DJANGO_SETTINGS_MODULE=newsletter.settings
python manage.py migrate
python manage.py send_newsletter spring --subscribers 10000
python manage.py db_worker    # in as many terminals as you like
"""

from __future__ import annotations

import django
from config import settings as example
from config.settings import *  # noqa: F403

QUEUE = "django_lettermint.tasks.EmailBackend"

INSTALLED_APPS = [
    *example.INSTALLED_APPS,
    "django.contrib.contenttypes",
    "django_tasks_db",
    "newsletter",
]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}

if django.VERSION >= (6, 1):
    MAILERS = {
        "default": {"BACKEND": QUEUE, "OPTIONS": {"using": "lettermint"}},
        "lettermint": {"BACKEND": example.BACKEND, "OPTIONS": example.LETTERMINT},
    }
else:
    EMAIL_BACKEND = QUEUE
