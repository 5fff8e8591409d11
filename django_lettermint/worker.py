"""`run()`, for tasks of your own."""

from __future__ import annotations

from .tasks import run

__all__ = ["run"]
