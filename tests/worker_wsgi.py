"""The site for gunicorn; loaded by its master, which sends a mail before it forks."""

from __future__ import annotations

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()

from tests.worker_mail import report  # noqa: E402 - Django is set up now

report("preloaded@example.org")


def child_exit(server: object, worker: object) -> None:
    """Send from the master, whose connection its children have inherited; a gunicorn hook."""
    report(f"{worker.pid}.gone@example.org")  # type: ignore[attr-defined]
