"""The worker's side of a queue: `run()`, for tasks of your own."""

from __future__ import annotations

from .tasks import run

__all__ = ["run"]
