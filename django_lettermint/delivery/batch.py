"""Lists over several connections: their number, and the batches they carry."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from .engine import Delivery

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.exceptions import LettermintError
    from django_lettermint.pool import ConnectionPool
    from django_lettermint.smtp import RelayState, Session

    from .submission import Submission


#: Messages in one batch, at most.
BATCH_SIZE = 25
#: A further connection is opened for each group of so many messages.
WORTH_A_CONNECTION = 5


def list_connections(config: RelayConfig, relay: RelayState, count: int | None) -> int:
    """Return how many connections a list of `count` messages may use at once.

    `count` is None for an iterator.
    """
    if not _runs_threads():
        return 1
    if config.batch_connections is not None:
        return config.batch_connections
    most = BATCH_SIZE + 1 if count is None else count
    # Pipelined behind the end of another, a message takes a single round trip.
    quick = config.pipelining and relay.pipelines_past_data
    if not config.endpoint.pooled or (quick and most <= BATCH_SIZE):
        return 1
    # The other half of the pool is for other senders.
    half = config.endpoint.pool.max_size // 2
    return max(1, min(half, most // WORTH_A_CONNECTION))


def _runs_threads() -> bool:
    """Return whether threads run in this process: in uWSGI, an option enables them."""
    options = getattr(sys.modules.get("uwsgi"), "opt", None)
    if options is None:
        return True
    enabled = options.get("enable-threads", False)
    return "threads" in options or enabled in (True, b"true", b"1")


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
        #: Batches that are not finished, oldest first. The latest is not yet submitted:
        #: it may be the only one, which needs no thread. If a future is cancelled, its
        #: batch is delivered in the caller's thread.
        self._pending: deque[tuple[Sequence[M], Future[None]]] = deque()
        #: Errors that further messages would meet as well; see Delivery.
        self._fatal: dict[object, LettermintError] = {}
        #: Set by an interrupt: no further message is begun.
        self._stop = threading.Event()
        #: Set once the first batch has a connection, or has ended. No other connection
        #: is opened before, so that a wrong token costs one login.
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
        except BaseException:  # an interrupt: report the end of all batches first
            self._stop.set()
            self._wait_for_all_but(0)
            raise
        finally:
            if self._executor:
                self._executor.shutdown()

    def send(self, batch: Sequence[M]) -> None:
        """Have a batch delivered by a thread."""
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
        except BaseException as error:  # noqa: BLE001 - raised by future.result()
            future.set_exception(error)
        else:
            future.set_result(None)

    def _deliver_here(self, batch: Sequence[M], future: Future[None]) -> None:
        """Deliver a batch in this thread, unless another one has begun to.

        After an interrupt of `submit()` it is unknown whether a thread has the batch.
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
            # Other threads of this list may hold the connections of a full pool.
            ignore_pool_timeout=self._executor is not None,
            connected=self._connected,
            fatal=self._fatal,
        )
        try:
            delivery.deliver_all([each.submissions for each in batch])
        finally:
            self._connected.set()
