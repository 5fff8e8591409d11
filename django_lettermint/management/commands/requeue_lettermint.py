"""manage.py requeue_lettermint: run again what killed workers have left behind."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q
from django.utils import timezone


class Command(BaseCommand):
    """Sets abandoned mail of django-tasks-db back to ready.

    That framework runs a task at most once: one that a killed worker had begun stays
    RUNNING for ever. Repeating ours is safe, as the relay knows the idempotency keys.
    """

    help = (
        "Queue again the mail that killed workers of django-tasks-db have left behind."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--older-than",
            type=float,
            default=600.0,
            metavar="SECONDS",
            help="take tasks that have been running for longer: more than the option "
            "`deadline`, so that no worker is at it still; default: %(default)g",
        )
        parser.add_argument(
            "--failed",
            action="store_true",
            help="take crashed tasks as well, once the reason is mended",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Set them back, and say how many."""
        if not apps.is_installed("django_tasks_db"):
            raise CommandError(
                "django_tasks_db is not in INSTALLED_APPS; docs/queues.md says how other "
                "task backends repeat tasks"
            )
        from django_tasks_db.models import DBTaskResult

        from django_lettermint.send_task import send

        begun = timezone.now() - timedelta(seconds=options["older_than"])
        left_behind = Q(status="RUNNING", started_at__lt=begun)
        if options["failed"]:
            left_behind |= Q(status="FAILED")
        ours = DBTaskResult.objects.filter(left_behind, task_path=send.module_path)
        count = ours.update(status="READY", started_at=None, finished_at=None)
        self.stdout.write(f"{count} tasks are ready to run again")
