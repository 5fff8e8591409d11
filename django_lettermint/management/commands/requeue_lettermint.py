"""manage.py requeue_lettermint: run again the mail that killed workers had begun."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q
from django.utils import timezone


class Command(BaseCommand):
    """Sets abandoned mail of django-tasks-db back to ready.

    django-tasks-db runs a task at most once: a task that a killed worker had begun stays
    RUNNING. Repeating ours is safe, as the relay knows the idempotency keys.
    """

    help = "Queue again the mail that killed workers of django-tasks-db had begun."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--older-than",
            type=float,
            default=600.0,
            metavar="SECONDS",
            help="take tasks that have been running for longer than this; must exceed the "
            "option `deadline`, so that no worker still runs them; default: %(default)g",
        )
        parser.add_argument(
            "--failed",
            action="store_true",
            help="take failed tasks as well; fix the cause first",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Set the tasks back and write their number."""
        if not apps.is_installed("django_tasks_db"):
            raise CommandError(
                "django_tasks_db is not in INSTALLED_APPS; docs/queues.md says how other "
                "task backends repeat tasks"
            )
        from django_tasks_db.models import DBTaskResult

        from django_lettermint.send_task import send

        begun = timezone.now() - timedelta(seconds=options["older_than"])
        abandoned = Q(status="RUNNING", started_at__lt=begun)
        if options["failed"]:
            abandoned |= Q(status="FAILED")
        ours = DBTaskResult.objects.filter(abandoned, task_path=send.module_path)
        count = ours.update(status="READY", started_at=None, finished_at=None)
        self.stdout.write(f"{count} tasks are ready to run again")
