"""Runs of messages on their way: one after the other, or several at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TYPE_CHECKING, Self

from . import engine as delivery

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.exceptions import LettermintError
    from django_lettermint.pool import ConnectionPool
    from django_lettermint.report import Job
    from django_lettermint.smtp.session import Session

Run = list["Job"]


class Lanes:
    """Delivers runs over `batch_connections` connections, and calls `land` for each.

    `land` is called in the thread and in the order of `send()`, also when something
    breaks in. More runs are taken only when earlier ones have landed, so that memory
    does not grow with the list.
    """

    def __init__(
        self,
        config: RelayConfig,
        pool: ConnectionPool[Session],
        land: Callable[[Run], None],
    ) -> None:
        self._config = config
        self._pool = pool
        self._land = land
        self._width = config.batch_connections
        self._executor: ThreadPoolExecutor | None = None
        #: Runs that have not landed, oldest first; None stands for this thread.
        self._flying: deque[tuple[Run, Future[None] | None]] = deque()
        #: The latest run. It may be the only one, which takes no thread.
        self._latest: Run = []
        #: What meets every message from now on: no TLS, no login, no connection.
        self._fatal: LettermintError | None = None
        #: Set by an interrupt: nothing new is begun.
        self._stop = threading.Event()

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
            self._land_all_but(self._width - 1)
            self._send_here()
            self._land_all_but(0)
        except BaseException:
            self._stop.set()
            self._send_here()
            self._land_all_but(0)
            raise
        finally:
            if self._executor:
                self._executor.shutdown()

    def send(self, run: Run) -> None:
        """Take a run; it is sent by a lane, or at once if there is only one."""
        if self._latest:
            self._flying.append((self._latest, self._lane_for(self._latest)))
        self._latest = run
        if self._width == 1:
            self._send_here()
        # With a single lane, nothing remains in the air.
        self._land_all_but(self._width if self._width > 1 else 0)

    def _lane_for(self, run: Run) -> Future[None] | None:
        self._executor = self._executor or ThreadPoolExecutor(self._width)
        try:
            return self._executor.submit(self._deliver, run)
        except RuntimeError:  # no new threads while Python exits
            self._deliver(run)
            return None

    def _send_here(self) -> None:
        """Send the latest run in this thread."""
        run, self._latest = self._latest, []
        if run:
            self._flying.append((run, None))
            self._deliver(run)

    def _land_all_but(self, number: int) -> None:
        while len(self._flying) > number:
            run, future = self._flying[0]
            if future:
                wait([future])
            self._flying.popleft()
            self._land(run)
            if future:
                future.result()

    def _deliver(self, run: Run) -> None:
        messages = [job.transactions for job in run]
        if self._fatal:
            for transactions in messages:
                for transaction in transactions:
                    transaction.fail(self._fatal)
            return
        # Waiting for a connection is no failure while other lanes have one.
        patient = self._executor is not None
        fatal = delivery.deliver(
            messages, self._config, self._pool, stop=self._stop, patient=patient
        )
        self._fatal = self._fatal or fatal
