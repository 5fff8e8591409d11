"""The process's pools: one per configuration, found again by every backend object.

Django makes a new backend for nearly every mail, so the pools live here. Workers that
end without running `atexit` (Celery's, multiprocessing's) may call `close_pools()`.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .connect import connect
from .connection_pool import ConnectionPool
from .smtp import Session

if TYPE_CHECKING:
    from .conf import RelayConfig
    from .lease import Lease
    from .pool_stats import PoolReport

#: Idle connections of all pools together; beyond it the oldest are closed.
MAX_IDLE = 64
#: Pools that are kept, with their statistics, though they hold nothing.
MAX_POOLS = 64

Pool = ConnectionPool[Session]


class _Registry:
    """All pools of one process."""

    def __init__(self) -> None:
        #: The process that may use the connections.
        self.pid = os.getpid()
        #: Guards the two below; never held while a pool is used.
        self.lock = threading.Lock()
        #: Every pool that somebody refers to, a holder of a connection for one.
        self.pools: weakref.WeakValueDictionary[RelayConfig, Pool] = (
            weakref.WeakValueDictionary()
        )
        #: Refers to those used latest, the last one last, and to all that hold
        #: connections. Others go, so that 10,000 tenants leave nothing behind.
        self.kept: OrderedDict[Pool, None] = OrderedDict()

    def keep(self, used: Pool) -> list[Pool]:
        """Make a pool the one used last, and return all that are kept."""
        with self.lock:
            self.kept[used] = None
            self.kept.move_to_end(used)
            for pool in list(self.kept)[:-MAX_POOLS]:
                if pool.empty:
                    del self.kept[pool]
            return list(self.kept)

    def all(self) -> set[Pool]:
        """Return all pools, also closed ones whose connections are not back yet."""
        return {*self.pools.values(), *self.kept}


_registry = _Registry()


def get_pool(config: RelayConfig) -> Pool:
    """Return the pool of a configuration, token included; make it if need be."""
    registry = _own_registry()
    with registry.lock:
        pool = registry.pools.get(config)
        if pool is None:
            pool = ConnectionPool(
                functools.partial(_connect, config),
                config.pool,
                park=config.pooled,
                name=f"{config.host}:{config.port} ({_digest(config)})",
            )
            registry.pools[config] = pool
        return pool


@contextmanager
def lease(
    config: RelayConfig, *, seconds: float, fresh: bool = False, patient: bool = False
) -> Iterator[Lease[Session]]:
    """Lend a session of the configuration's pool for the time of a `with` block.

    Uses the occasion to close what has expired in any pool. Raises what
    `ConnectionPool.lease()` raises.
    """
    pool = get_pool(config)
    try:
        with pool.lease(seconds=seconds, fresh=fresh, patient=patient) as held:
            yield held
    finally:
        _tidy(pool)


def get_stats() -> list[PoolReport]:
    """Return what each pool has and did, and whose it is."""
    registry = _own_registry()
    with registry.lock:
        pools = list(registry.pools.items())
    return [
        {
            "host": config.host,
            "port": config.port,
            "username": config.username,
            "digest": _digest(config),
            **pool.stats(),
        }
        for config, pool in pools
    ]


def close_pools(timeout: float = 2.0) -> None:
    """Say QUIT to all idle connections and close them, within `timeout` seconds.

    Waiting senders get PoolClosed; connections in use close when they come back; a
    later send opens a new pool.
    """
    until = time.monotonic() + timeout
    registry = _own_registry()
    with registry.lock:
        pools = registry.all()
        registry.pools.clear()
    sessions = [session for pool in pools for session in pool.close()]
    with registry.lock:
        registry.kept = OrderedDict.fromkeys(pool for pool in pools if not pool.empty)
    try:
        for session in sessions:
            if time.monotonic() < until:
                session.say_goodbye()
        for session in sessions:
            session.await_goodbye(until)
    finally:
        for session in sessions:
            session.close()


def _connect(config: RelayConfig, ready_by: float) -> Session:
    return connect(config, until=ready_by)


def _digest(config: RelayConfig) -> str:
    text = f"{config!r} {config.token.reveal()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _tidy(used: Pool) -> None:
    """Close what has expired in any pool, and the oldest of too many idle connections."""
    pools = _own_registry().keep(used)
    for pool in pools:
        pool.expire()
    _enforce_cap(pools)


def _enforce_cap(pools: list[Pool]) -> None:
    parked_at = sorted(moment for pool in pools for moment in pool.parked_at())
    surplus = len(parked_at) - MAX_IDLE
    if surplus > 0:
        for pool in pools:
            pool.expire(parked_at[surplus - 1])


def _own_registry() -> _Registry:
    """Return this process's registry, even if forked without Python's hooks."""
    if _registry.pid != os.getpid():
        _forget_inherited()
    return _registry


def _forget_inherited() -> None:
    """Start anew in a forked process; its parent goes on using the connections."""
    global _registry  # noqa: PLW0603
    inherited = _registry.all()
    _registry = _Registry()
    for pool in inherited:
        pool.abandon()


os.register_at_fork(after_in_child=_forget_inherited)
# Early, so that what runs at exit and was registered later can still send.
atexit.register(close_pools)
