"""The queue: a backend that makes tasks of messages, and the worker that sends them.

The task itself is in `task`, which is not imported here: Celery imports `tasks` of
every app, and Django validates a task against the setting TASKS when it is imported.
"""

from __future__ import annotations

from .backend import EmailBackend
from .worker import run

__all__ = ["EmailBackend", "run"]
