"""A site for gunicorn and an app for Celery, whose workers send; used by test_workers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.signals import worker_init, worker_process_shutdown
from django.core.mail import EmailMessage
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

from django_lettermint.pool import close_pools
from tests.settings import *  # noqa: F403 - this module is also the site's settings

if TYPE_CHECKING:
    from django.http import HttpRequest

ROOT_URLCONF = "tests.pool.worker_programs"


def send(to: str) -> None:
    """Send a mail that names this process."""
    from django_lettermint.backend import EmailBackend

    sender = EmailBackend(**json.loads(os.environ["OPTIONS"]))
    message = EmailMessage("Hello", str(os.getpid()), "ann@example.org", [to])
    assert sender.send_messages([message]) == 1


def send_number(number: int) -> None:
    send(f"{number}@example.org")


# -- gunicorn: its master loads the site, and sends a mail before it forks ---------------


def page(request: HttpRequest, number: int) -> HttpResponse:
    send_number(number)
    return HttpResponse("sent")


urlpatterns = [path("<int:number>", page)]


def load() -> Any:
    application = get_wsgi_application()
    send("preloaded@example.org")
    return application


def child_exit(server: object, worker: Any) -> None:
    """Send from the master over the connection that its children have inherited.

    A hook of gunicorn.
    """
    send(f"{worker.pid}.gone@example.org")


# -- Celery, whose broker is a folder ----------------------------------------------------


def make_app(folder: Path) -> Celery:
    app = Celery("tests", broker="filesystem://", set_as_current=False)
    for name in ("queue", "control"):
        (folder / name).mkdir(exist_ok=True)
    app.conf.broker_transport_options = {
        "data_folder_in": str(folder / "queue"),
        "data_folder_out": str(folder / "queue"),
        "control_folder": str(folder / "control"),
    }
    app.conf.worker_hijack_root_logger = False
    return app


def send_before_the_fork(**_: object) -> None:
    send("preloaded@example.org")


def leave(**_: object) -> None:
    close_pools()


if "CELERY_FOLDER" in os.environ:
    worker_init.connect(send_before_the_fork)
    worker_process_shutdown.connect(leave)
    app = make_app(Path(os.environ["CELERY_FOLDER"]))
    app.task(send_number, name="send")
