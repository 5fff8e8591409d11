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

from django_lettermint.smtp.connect import connect
from django_lettermint.smtp.session import Session
from django_lettermint.smtp.stream import close_inherited

from .connection_pool import ConnectionPool

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig

    from .connection import Lease
    from .stats import PoolReport

#: Idle connections of all pools together; beyond it the oldest are closed.
MAX_IDLE = 64
#: Pools used latest that are kept, with their statistics, though they hold nothing.
MAX_POOLS = 64

Pool = ConnectionPool[Session]


class _Registry:
    """All pools of one process."""

    def __init__(self) -> None:
        #: Guards the two below; never held while a pool is used.
        self.lock = threading.Lock()
        #: Every pool that somebody refers to, a holder of a connection for one.
        self.pools: weakref.WeakValueDictionary[RelayConfig, Pool] = (
            weakref.WeakValueDictionary()
        )
        #: Refers to the pools used latest, the last one last, and to all others that
        #: hold connections. The rest goes, so that 10,000 tenants leave nothing behind.
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


#: By process id: this process's own, and for a moment after a fork the parent's.
_registries: dict[int, _Registry] = {}


def get_pool(config: RelayConfig) -> Pool:
    """Return the pool of a configuration, token included; make it if need be."""
    registry = _own_registry()
    with registry.lock:
        pool = registry.pools.get(config)
        if pool is None:
            pool = ConnectionPool(
                functools.partial(_connect, config),
                config.endpoint.pool,
                park=config.endpoint.pooled,
                name=f"{config.endpoint.host}:{config.endpoint.port} ({_digest(config)})",
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
            "host": config.endpoint.host,
            "port": config.endpoint.port,
            "username": config.endpoint.username,
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
        # Those whose connections are not back yet, and any that were opened meanwhile.
        for pool in pools:
            if pool.empty:
                registry.kept.pop(pool, None)
            else:
                registry.kept[pool] = None
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
    text = f"{config!r} {config.endpoint.token.reveal()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _tidy(used: Pool) -> None:
    """Close what has expired in any pool, and the oldest of too many idle connections."""
    pools = _own_registry().keep(used)
    for pool in pools:
        pool.expire()
    _enforce_cap(pools)


def _enforce_cap(pools: list[Pool]) -> None:
    if sum(pool.idle for pool in pools) <= MAX_IDLE:
        return
    parked_at = sorted(moment for pool in pools for moment in pool.parked_at())
    for moment in parked_at[:-MAX_IDLE][-1:]:  # none, if others were faster
        for pool in pools:
            pool.expire(moment)


def _own_registry() -> _Registry:
    """Return this process's registry, even if forked without Python's hooks."""
    return _registries.get(os.getpid()) or _start_anew()


def _start_anew() -> _Registry:
    """Begin without connections; a parent process goes on using what is inherited."""
    own = os.getpid()
    registry = _registries.setdefault(own, _Registry())  # atomic, as pop() is
    others = [_registries.pop(pid, None) for pid in tuple(_registries) if pid != own]
    for inherited in filter(None, others):
        for pool in inherited.all():
            pool.abandon()
        # Those being dialled or closed are in no pool's hands.
        close_inherited()
    return registry


os.register_at_fork(after_in_child=_start_anew)
# Early, so that what runs at exit and was registered later can still send.
atexit.register(close_pools)
