"""The connections of the process, in one pool for each relay and login."""

from __future__ import annotations

from .connection import CloseReason, PooledConnection
from .connection_pool import ConnectionPool
from .registry import close_pools, get_pool, get_stats, lease, open_pool
from .stats import PoolReport, PoolStats

__all__ = [
    "CloseReason",
    "ConnectionPool",
    "PoolReport",
    "PoolStats",
    "PooledConnection",
    "close_pools",
    "get_pool",
    "get_stats",
    "lease",
    "open_pool",
]
