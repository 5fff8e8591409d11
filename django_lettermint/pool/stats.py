"""The statistics of a pool."""

from __future__ import annotations

from typing import Literal, TypedDict, get_args

#: Counters that a pool increments by one.
Event = Literal[
    "requests", "waits", "timeouts", "opened", "open_errors", "reused", "messages",
    "retries", "resets", "pings",
]  # fmt: skip


class PoolStats(TypedDict):
    """The state of a pool, and its counters since it was made."""

    #: `idle` and `in_use` together; at most max_size.
    size: int
    #: Connections that are not leased.
    idle: int
    #: Connections that are leased, being opened or closed.
    in_use: int
    #: Callers that wait for a connection.
    waiting: int
    #: How often a connection was requested.
    requests: int
    #: Requests that had to wait.
    waits: int
    #: Seconds that requests have waited, in all.
    wait_seconds: float
    #: Requests that ended with PoolTimeout.
    timeouts: int
    #: Connections that were opened and logged in.
    opened: int
    #: Attempts to open one that failed.
    open_errors: int
    #: Requests that got an idle connection.
    reused: int
    #: Messages that were begun.
    messages: int
    #: Messages tried again after their connection was lost.
    retries: int
    #: Connections kept after a refusal: the next message on one begins with RSET.
    resets: int
    #: Connections tested by NOOP.
    pings: int
    #: Connections closed, by reason.
    closed: dict[str, int]


class PoolReport(PoolStats):
    """The statistics of a pool, and its endpoint."""

    host: str
    port: int
    username: str
    tenant: str | None
    #: Differs between configurations, tokens included; does not reveal the token.
    digest: str


def no_stats() -> PoolStats:
    """Return the statistics of a new pool."""
    return {
        "size": 0,
        "idle": 0,
        "in_use": 0,
        "waiting": 0,
        "requests": 0,
        "waits": 0,
        "wait_seconds": 0.0,
        "timeouts": 0,
        "opened": 0,
        "open_errors": 0,
        "reused": 0,
        "messages": 0,
        "retries": 0,
        "resets": 0,
        "pings": 0,
        "closed": {},
    }


def add_stats(stats: PoolStats, other: PoolStats) -> None:
    """Add the counters of another pool."""
    event: Event
    for event in get_args(Event):
        stats[event] += other[event]
    stats["wait_seconds"] += other["wait_seconds"]
    for reason, number in other["closed"].items():
        stats["closed"][reason] = stats["closed"].get(reason, 0) + number
