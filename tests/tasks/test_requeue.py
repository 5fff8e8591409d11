"""manage.py requeue_lettermint: mail that killed workers of django-tasks-db had begun."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from django.test import modify_settings
from django.utils import timezone

if TYPE_CHECKING:
    from django_tasks_db.models import DBTaskResult

pytestmark = pytest.mark.django_db


def task(status: str, *, minutes: float, **fields: Any) -> DBTaskResult[..., Any]:
    """Store a task that began so many minutes ago."""
    from django_tasks_db.models import DBTaskResult

    values: dict[str, Any] = {
        "task_path": "django_lettermint.send_task.send",
        "args_kwargs": {"args": [{}], "kwargs": {}},
        "backend_name": "default",
        "worker_ids": [],
    }
    now = timezone.now()
    return DBTaskResult.objects.create(
        status=status,
        started_at=now - timedelta(minutes=minutes),
        run_after=now,
        **values | fields,
    )


def requeue(**options: Any) -> str:
    out = StringIO()
    call_command("requeue_lettermint", stdout=out, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("status", "minutes", "options"),
    [
        ("RUNNING", 11, {}),
        ("RUNNING", 5, {"older_than": 240}),
        ("FAILED", 0, {"failed": True}),
    ],
)
def test_an_abandoned_task_is_ready_again(
    status: str, minutes: float, options: dict[str, Any]
) -> None:
    form = {"args": [{"version": 1}], "kwargs": {}}
    abandoned = task(status, minutes=minutes, args_kwargs=form)
    assert requeue(**options) == "1 tasks are ready to run again\n"
    abandoned.refresh_from_db()
    assert (abandoned.status, abandoned.started_at) == ("READY", None)
    assert abandoned.args_kwargs == form


def test_the_next_worker_knows_that_another_one_had_begun() -> None:
    abandoned = task("RUNNING", minutes=60, worker_ids=["killed"])
    requeue()
    abandoned.refresh_from_db()
    abandoned.claim("another")
    abandoned.backend_name = "dummy"  # which has run_after, as the real one has
    assert abandoned.task_result.attempts == 2


@pytest.mark.parametrize(
    "other",
    [
        {"status": "RUNNING", "minutes": 9},
        {"status": "RUNNING", "minutes": 60, "task_path": "shop.tasks.report"},
        {"status": "SUCCESSFUL", "minutes": 60},
        {"status": "FAILED", "minutes": 60},
    ],
)
def test_other_tasks_are_left_alone(other: dict[str, Any]) -> None:
    alone = task(**other)
    assert requeue() == "0 tasks are ready to run again\n"
    alone.refresh_from_db()
    assert alone.status == other["status"]


@modify_settings(INSTALLED_APPS={"remove": "django_tasks_db"})
def test_without_django_tasks_db_the_command_says_where_to_look() -> None:
    with pytest.raises(CommandError, match=r"docs/queues\.md"):
        requeue()
