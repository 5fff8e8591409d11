"""The process's pools, one for each endpoint.

Django makes a new backend for nearly every mail, so the pools cannot belong to it.
Workers that end without running `atexit` (Celery's, multiprocessing's) may call
`close_pools()`.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from django_lettermint.smtp import RelayState, Session, close_inherited, connect

from .connection import (
    QUIT_TIMEOUT,
    CloseReason,
    PooledConnection,
    PoolRequest,
    close_gracefully,
)
from .connection_pool import LOCK_TIMEOUT, ConnectionPool

if TYPE_CHECKING:
    from django_lettermint.conf import Endpoint, PoolConfig, RelayConfig

    from .stats import PoolReport

#: Idle connections of all pools together; beyond it the oldest are closed.
MAX_IDLE = 64
#: Beyond so many pools, those unused for longest are forgotten, with their statistics,
#: unless they hold connections.
MAX_POOLS = 64


class RelayPool(ConnectionPool[Session]):
    """The connections to one relay under one login."""

    def __init__(
        self,
        endpoint: Endpoint,
        limits: PoolConfig,
        relay: RelayState,
        *,
        evict: Callable[[list[PoolRequest[Session]]], None] | None = None,
    ) -> None:
        def connect_to_relay(until: float, timeout: float) -> Session:
            return connect(endpoint, relay, until=until, timeout=timeout)

        name = f"{endpoint.host}:{endpoint.port} ({_digest(endpoint)})"
        super().__init__(connect_to_relay, limits, name=name, evict=evict)
        #: What earlier connections have shown of the relay.
        self.relay = relay


class _Registry:
    """The pools of one process.

    It needs no lock, which an interrupt could leave locked: each access is one atomic
    operation of a dict.
    """

    def __init__(self) -> None:
        #: The process that made the pools. Set by reset_after_fork().
        self.pid = os.getpid()
        #: Each pool has connections of this process only.
        self.pools: dict[Endpoint, RelayPool] = {}

    def add(self, endpoint: Endpoint) -> RelayPool:
        """Return the pool of an endpoint, made now unless another thread has made it."""
        new = RelayPool(endpoint, endpoint.pool, RelayState(), evict=self.evict)
        pool = self.pools.setdefault(endpoint, new)
        pools = sorted(self.pools.copy().items(), key=lambda item: item[1].used_at)
        for forgotten, unused in pools[:-MAX_POOLS]:
            if unused.empty:
                self.pools.pop(forgotten, None)
                # A thread that has just got it is served, but it keeps no connection.
                close_gracefully(unused.close(), time.monotonic())
        return pool

    def evict(self, closing: list[PoolRequest[Session]]) -> None:
        """Take out what has expired in any pool, and what is idle beyond MAX_IDLE."""
        pools = self.pools.copy().values()
        idle_since = sorted(
            moment for pool in pools for moment in pool.take_expired(closing)
        )
        if len(idle_since) > MAX_IDLE:
            last_surplus = idle_since[-MAX_IDLE - 1]
            for pool in pools:
                pool.take_expired(closing, kept_before=last_surplus)

    def reset_after_fork(self) -> None:
        """Drop the parent process's pools, without writing to their connections."""
        pools, self.pools, self.pid = self.pools, {}, os.getpid()
        for pool in pools.copy().values():
            pool.reset_after_fork()
        # Connections being opened or closed belong to no pool.
        close_inherited()


_registry = _Registry()


def get_pool(endpoint: Endpoint) -> RelayPool:
    """Return the pool of an endpoint; a new one has no connections yet."""
    registry = _own_registry()
    return registry.pools.get(endpoint) or registry.add(endpoint)


@contextmanager
def open_pool(config: RelayConfig) -> Iterator[RelayPool]:
    """Give the pool for one call of `send_messages()`.

    With the option `pool=False`, it is a new one, closed at the end of the block.
    """
    pool = get_pool(config.endpoint)
    if config.endpoint.pooled:
        yield pool
        return
    limits = replace(config.endpoint.pool, max_size=config.batch_connections or 1)
    private = RelayPool(config.endpoint, limits, pool.relay)
    try:
        yield private
    finally:
        sessions = private.close(CloseReason.UNPOOLED)
        close_gracefully(sessions, time.monotonic() + QUIT_TIMEOUT)
        pool.absorb(private.stats())


@contextmanager
def lease(
    config: RelayConfig,
    *,
    seconds: float,
    force_new: bool = False,
    ignore_pool_timeout: bool = False,
) -> Iterator[PooledConnection[Session]]:
    """Lease a connection for a `with` block; see `ConnectionPool.lease()`."""
    with (
        open_pool(config) as pool,
        pool.lease(
            seconds=seconds,
            timeout=config.timeout,
            force_new=force_new,
            ignore_pool_timeout=ignore_pool_timeout,
        ) as connection,
    ):
        yield connection


def get_stats() -> list[PoolReport]:
    """Return the statistics of each pool of this process."""
    return [
        {
            "host": endpoint.host,
            "port": endpoint.port,
            "username": endpoint.username,
            "tenant": endpoint.tenant,
            "digest": _digest(endpoint),
            **pool.stats(),
        }
        for endpoint, pool in _own_registry().pools.copy().items()
    ]


def close_pools(timeout: float = 2.0) -> None:
    """Send QUIT on all idle connections and close them, within `timeout` seconds.

    Connections in use are closed when they come back. Callers that wait for one get
    PoolClosed. The next mail opens a new pool.
    """
    until = time.monotonic() + timeout
    pools = _own_registry().pools
    sessions: list[Session] = []
    try:
        for pool in filter(None, [pools.pop(each, None) for each in pools.copy()]):
            left = max(0.0, until - time.monotonic())
            sessions += pool.close(seconds=min(left, LOCK_TIMEOUT))
        if timeout > 0:
            close_gracefully(sessions, until)
    finally:
        for session in sessions:
            session.close()


def _digest(endpoint: Endpoint) -> str:
    text = f"{endpoint!r} {endpoint.token.reveal()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _own_registry() -> _Registry:
    """Return the registry, reset if C code has forked, which runs no hooks of Python."""
    if _registry.pid != os.getpid():
        _registry.reset_after_fork()
    return _registry


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_registry.reset_after_fork)
# Handlers registered later run earlier, and can still send.
atexit.register(close_pools)
