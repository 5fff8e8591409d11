"""manage.py requeue_lettermint: what killed workers of django-tasks-db left behind."""

from __future__ import annotations

from collections.abc import Sequence
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


def task(
    status: str,
    *,
    minutes: float = 60,
    path: str = "django_lettermint.send_task.send",
    worker_ids: Sequence[str] = (),
) -> DBTaskResult[..., Any]:
    """Store a task that began so many minutes ago."""
    from django_tasks_db.models import DBTaskResult

    return DBTaskResult.objects.create(
        status=status,
        started_at=timezone.now() - timedelta(minutes=minutes),
        task_path=path,
        args_kwargs={"args": [{}], "kwargs": {}},
        run_after=timezone.now(),
        backend_name="default",
        worker_ids=worker_ids,
    )


def requeue(**options: Any) -> str:
    out = StringIO()
    call_command("requeue_lettermint", stdout=out, **options)
    return out.getvalue()


def test_a_task_that_has_been_running_for_long_is_ready_again() -> None:
    left_behind = task("RUNNING")

    assert requeue() == "1 tasks are ready to run again\n"

    left_behind.refresh_from_db()
    assert (left_behind.status, left_behind.started_at) == ("READY", None)


def test_another_attempt_is_known_as_one() -> None:
    left_behind = task("RUNNING", worker_ids=["killed"])

    requeue()

    left_behind.refresh_from_db()
    left_behind.claim("another")
    left_behind.backend_name = "dummy"  # which has run_after, as the real one has
    assert left_behind.task_result.attempts == 2


@pytest.mark.parametrize(
    "other",
    [
        {"status": "RUNNING", "minutes": 5},
        {"status": "RUNNING", "path": "shop.tasks.report"},
        {"status": "SUCCESSFUL"},
        {"status": "FAILED"},
    ],
)
def test_other_tasks_are_left_alone(other: dict[str, Any]) -> None:
    alone = task(**other)

    assert requeue() == "0 tasks are ready to run again\n"

    alone.refresh_from_db()
    assert alone.status == other["status"]


def test_how_long_is_an_option() -> None:
    task("RUNNING", minutes=5)

    assert requeue(older_than=240) == "1 tasks are ready to run again\n"


def test_failed_tasks_are_taken_on_demand_however_young() -> None:
    task("FAILED", minutes=0)

    assert requeue(failed=True) == "1 tasks are ready to run again\n"


@modify_settings(INSTALLED_APPS={"remove": "django_tasks_db"})
def test_without_django_tasks_db_the_command_says_where_to_look() -> None:
    with pytest.raises(CommandError, match=r"docs/queues\.md"):
        requeue()
