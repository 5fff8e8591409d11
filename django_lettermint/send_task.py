"""The task, at the path that queues store."""

from __future__ import annotations

from .tasks.task import send

__all__ = ["send"]
