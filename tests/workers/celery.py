"""The Celery recipe of docs/queues.md: a plain task around the frozen envelope."""

from __future__ import annotations

import os
from typing import Any

import django
from celery import Celery

django.setup()

from django_lettermint import tasks  # noqa: E402
from django_lettermint.worker import run  # noqa: E402

app = Celery(
    "mail",
    broker=f"redis+socket://{os.environ['QUEUE_FOLDER']}/redis.sock",
    task_ignore_result=True,
    # Taken from the queue when done: what a killed worker had is run again.
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    # That long after it was taken. Must exceed the longest pause between tries, since a
    # worker holds what it is to run later: 2 hours, but for tests.
    broker_transport_options={"visibility_timeout": 60},
)


@app.task(bind=True)  # type: ignore[untyped-decorator]
def send_later(task: Any, form: dict[str, Any]) -> None:
    """Send what is queued; queue it again if another try may help."""

    def later(form: dict[str, Any], pause: float) -> None:
        send_later.apply_async([form], countdown=pause)

    run(form, later, again=task.request.delivery_info.get("redelivered", False))


class EmailBackend(tasks.EmailBackend):
    """Queues in Celery."""

    def enqueue(self, form: dict[str, Any]) -> None:
        """Hand a message to Celery."""
        send_later.delay(form)
