"""A Celery app whose one task sends a mail; its broker is a folder."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from celery.signals import worker_init, worker_process_shutdown

from django_lettermint.pool import close_pools


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


def send(number: int) -> None:
    from tests.pool.worker_mail import report

    report(f"{number}@example.org")


def send_before_the_fork(**_: object) -> None:
    from tests.pool.worker_mail import report

    report("preloaded@example.org")


def leave(**_: object) -> None:
    close_pools()


if "CELERY_FOLDER" in os.environ:
    worker_init.connect(send_before_the_fork)
    worker_process_shutdown.connect(leave)
    app = make_app(Path(os.environ["CELERY_FOLDER"]))
    app.task(send, name="send")
