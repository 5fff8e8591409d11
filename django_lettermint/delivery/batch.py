"""A list over several connections: how many, and the batches that they carry."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from django_lettermint.pool import open_pool

from .engine import Delivery

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.exceptions import LettermintError
    from django_lettermint.pool import ConnectionPool
    from django_lettermint.smtp import RelayState, Session

    from .submission import Submission


#: Messages in one batch, at most.
BATCH_SIZE = 25
#: Messages for which a further connection is worth its login.
WORTH_A_CONNECTION = 5


def list_connections(config: RelayConfig, relay: RelayState, count: int | None) -> int:
    """Return how many connections a list of so many messages may use at once.

    `count` is None if that is not known.
    """
    if not _runs_threads():
        return 1
    if config.batch_connections is not None:
        return config.batch_connections
    most = BATCH_SIZE + 1 if count is None else count
    # Where commands go behind the end of a message, it takes a single round trip.
    quick = config.pipelining and relay.pipelines_past_data
    if not config.endpoint.pooled or (quick and most <= BATCH_SIZE):
        return 1
    # Of any pool, other senders get the other half.
    half = config.endpoint.pool.max_size // 2
    return max(1, min(half, most // WORTH_A_CONNECTION))


def _runs_threads() -> bool:
    """Return whether threads run in this process: uWSGI has to be told so."""
    options = getattr(sys.modules.get("uwsgi"), "opt", None)
    if options is None:
        return True
    told = options.get("enable-threads", False)
    return "threads" in options or told in (True, b"true", b"1")


def deliver_all(messages: Sequence[list[Submission]], delivery: Delivery) -> None:
    """Deliver messages of which some may have a configuration of their own.

    They go over connections of their own, the others as `delivery` does.
    """
    usual: list[list[Submission]] = []
    others: dict[RelayConfig, list[list[Submission]]] = {}
    for each in messages:
        config = each[0].config if each else delivery.config
        if config is delivery.config or config == delivery.config:
            usual.append(each)
        else:
            others.setdefault(config, []).append(each)
    try:
        delivery.deliver(usual)
        for config, group in others.items():
            with open_pool(config) as connections:
                delivery.over(connections, config).deliver(group)
    except BaseException:
        for submission in chain.from_iterable(messages):
            if not submission.done:
                submission.fail(None)
        raise


class _HasSubmissions(Protocol):
    submissions: list[Submission]


M = TypeVar("M", bound=_HasSubmissions)


class BatchSender(Generic[M]):
    """Delivers batches over up to `width` connections.

    `on_finished` is called for each batch in the caller's thread and in the order of
    `send()`, also after an interrupt. `send()` waits while `width` batches are
    unfinished, so that memory does not grow with the list.
    """

    def __init__(
        self,
        config: RelayConfig,
        connections: ConnectionPool[Session],
        on_finished: Callable[[Sequence[M]], None],
        *,
        width: int,
    ) -> None:
        self._config = config
        self._connections = connections
        self._on_finished = on_finished
        self._width = width
        self._executor: ThreadPoolExecutor | None = None
        #: Batches that are not finished, oldest first. The latest is not yet submitted, as
        #: it may be the only one, which takes no thread. A future that is cancelled has its
        #: batch delivered in the caller's thread.
        self._pending: deque[tuple[Sequence[M], Future[None]]] = deque()
        #: What any further message would meet as well: no TLS, no login, no connection.
        self._fatal: dict[object, LettermintError] = {}
        #: Set by an interrupt: nothing new is begun.
        self._stop = threading.Event()
        #: Set once the first batch has a connection, or its end. Until then no other is
        #: opened: one finds out that the token is wrong, or the relay gone.
        self._connected = threading.Event()
        self._first: Sequence[M] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind and not issubclass(kind, Exception):
            self._stop.set()
        try:
            self._wait_for_all_but(self._width)
            if self._pending:
                if self._pending[-1][0] is not self._first:
                    self._connected.wait()
                self._deliver_here(*self._pending[-1])
            self._wait_for_all_but(0)
        except BaseException:
            self._stop.set()
            self._wait_for_all_but(0)
            raise
        finally:
            if self._executor:
                self._executor.shutdown()

    def send(self, batch: Sequence[M]) -> None:
        """Take a batch, to be delivered by a thread."""
        self._first = self._first or batch
        self._pending.append((batch, Future()))
        if len(self._pending) > 1:
            self._submit(*self._pending[-2])
        self._wait_for_all_but(self._width + 1)

    def _submit(self, batch: Sequence[M], future: Future[None]) -> None:
        self._executor = self._executor or ThreadPoolExecutor(self._width)
        try:
            self._executor.submit(self._deliver_in_thread, batch, future)
        except RuntimeError:  # no new threads while Python exits
            self._deliver_here(batch, future)

    def _deliver_in_thread(self, batch: Sequence[M], future: Future[None]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if batch is not self._first:
            self._connected.wait()
        try:
            self._deliver(batch)
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)
        else:
            future.set_result(None)

    def _deliver_here(self, batch: Sequence[M], future: Future[None]) -> None:
        """Deliver a batch in this thread, unless another has begun to.

        An interrupt of `submit()` does not tell whether a thread has the batch.
        """
        if future.cancel():
            self._deliver(batch)

    def _wait_for_all_but(self, number: int) -> None:
        while len(self._pending) > number:
            batch, future = self._pending[0]
            if self._stop.is_set():
                self._deliver_here(batch, future)
            if not future.cancelled():
                wait([future])
            self._pending.popleft()
            self._on_finished(batch)
            if not future.cancelled():
                future.result()

    def _deliver(self, batch: Sequence[M]) -> None:
        delivery = Delivery(
            self._config,
            self._connections,
            stop=self._stop,
            # Waiting for a connection is no failure while other threads have one.
            ignore_pool_timeout=self._executor is not None,
            connected=self._connected,
            fatal=self._fatal,
        )
        try:
            deliver_all([each.submissions for each in batch], delivery)
        finally:
            self._connected.set()
