"""Settings of worker processes and of what fills their queue, all from the environment.

QUEUE_ENGINE   database, rq or celery
QUEUE_RELAY    the relay's options as JSON
QUEUE_FOLDER   holds the database, or the sockets of PostgreSQL and Redis
"""

from __future__ import annotations

import json
import os

import django

ENGINE = os.environ["QUEUE_ENGINE"]
FOLDER = os.environ["QUEUE_FOLDER"]
#: The EHLO name tells the test which worker a connection belongs to.
RELAY = {
    **json.loads(os.environ["QUEUE_RELAY"]),
    "local_hostname": f"worker-{os.environ.get('WORKER', 'none')}.test",
}

SECRET_KEY = "workers"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django_lettermint",
    "tests.workers.signals.SignalsConfig",
]

if os.environ.get("QUEUE_POSTGRESQL"):
    DATABASES: dict[str, dict[str, object]] = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": FOLDER,
            "NAME": "postgres",
            "USER": "postgres",
        }
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": f"{FOLDER}/db.sqlite3",
            "OPTIONS": {
                "timeout": 30,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            },
        }
    }

SENDS = "django_lettermint.backend.EmailBackend"
QUEUE = "django_lettermint.tasks.EmailBackend"
if ENGINE == "database":
    INSTALLED_APPS += ["django_tasks_db"]
    TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
elif ENGINE == "rq":
    INSTALLED_APPS += ["django_rq"]
    TASKS = {"default": {"BACKEND": "django_tasks_rq.RQBackend"}}
    RQ_QUEUES = {"default": {"UNIX_SOCKET_PATH": f"{FOLDER}/redis.sock", "DB": 0}}
else:
    QUEUE = "tests.workers.celery.EmailBackend"

if django.VERSION >= (6, 1):
    MAILERS = {
        "default": {"BACKEND": QUEUE, "OPTIONS": {"using": "relay"}},
        "relay": {"BACKEND": SENDS, "OPTIONS": RELAY},
    }
else:
    EMAIL_BACKEND = QUEUE
    ANYMAIL = {f"LETTERMINT_{name.upper()}": RELAY[name] for name in RELAY}
