"""The task that sends what the queueing backend has queued.

Imported late: Django validates a task against the setting TASKS when it is imported,
and projects that do not queue need no TASKS.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.utils import timezone

from .worker import run

try:
    from django.tasks import task
except ImportError:  # Django < 6.0
    from django_tasks import task  # type: ignore[no-redef]

if TYPE_CHECKING:
    from django.tasks import TaskContext


@task(takes_context=True)
def send(context: TaskContext[..., Any], form: dict[str, Any]) -> dict[str, str | None]:
    """Send a queued message; put it back if another try may help."""
    own = context.task_result.task

    def later(form: dict[str, Any], seconds: float) -> None:
        moment = timezone.now() + timedelta(seconds=seconds)
        own.using(run_after=moment).enqueue(form)

    defers = own.get_backend().supports_defer
    return run(form, later if defers else None, again=context.attempt > 1)


# The path that queues store: it must be the same in every release.
send.func.__module__ = "django_lettermint.send_task"
