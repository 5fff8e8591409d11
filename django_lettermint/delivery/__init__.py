"""Delivery of envelopes over connections; `policy` decides, `engine` carries it out."""

from __future__ import annotations

from .batch import BATCH_SIZE, BatchSender, list_connections
from .engine import Delivery
from .policy import LIST_PATIENCE, PATIENCE, later_may_help
from .result import build_error, build_result
from .submission import Deadline, Submission, submissions

__all__ = [
    "BATCH_SIZE",
    "LIST_PATIENCE",
    "PATIENCE",
    "BatchSender",
    "Deadline",
    "Delivery",
    "Submission",
    "build_error",
    "build_result",
    "later_may_help",
    "list_connections",
    "submissions",
]
