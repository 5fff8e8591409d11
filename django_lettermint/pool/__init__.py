"""The process's connections, by pool: lent, kept idle, closed."""

from __future__ import annotations

from .connection import Lease
from .connection_pool import ConnectionPool
from .registry import close_pools, get_pool, get_stats, lease
from .stats import PoolReport, PoolStats

__all__ = [
    "ConnectionPool",
    "Lease",
    "PoolReport",
    "PoolStats",
    "close_pools",
    "get_pool",
    "get_stats",
    "lease",
]
