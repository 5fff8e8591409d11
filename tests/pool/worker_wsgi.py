"""The site for gunicorn; loaded by its master, which sends a mail before it forks."""

from __future__ import annotations

from typing import Any

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()

from tests.pool.worker_mail import report  # noqa: E402 - Django is set up now

report("preloaded@example.org")


def child_exit(server: object, worker: Any) -> None:
    """Send from the master over the connection that its children have inherited.

    A hook of gunicorn.
    """
    report(f"{worker.pid}.gone@example.org")
