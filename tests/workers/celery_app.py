"""What `celery -A` loads: Django first, then the tasks."""

from __future__ import annotations

import django

django.setup()

from tests.workers.celery import app  # noqa: E402

app.autodiscover_tasks()

__all__ = ["app"]
