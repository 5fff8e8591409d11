"""From envelopes to final outcomes: connections, retries, repeats.

What may be tried again is decided here, for connections, and in `transaction`, for one
message:

- lost before the commit point on a connection that has served before: at once, on a
  new one, as if nothing had happened;
- the same on a new connection, or no connection at all: `retries` times in a row;
- lost after it (UNKNOWN): only under an idempotency key, byte for byte;
- refused by the relay: never; that is the job of the caller, or of a queue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django_lettermint.exceptions import (
    ConnectFailed,
    ConnectionLost,
    LettermintError,
    PoolClosed,
    PoolTimeout,
)

from .submission import PAUSE, Deadline, Transaction, pause

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.envelope import Envelope
    from django_lettermint.pool import ConnectionPool, PooledConnection
    from django_lettermint.smtp.attempt import Attempt
    from django_lettermint.smtp.session import Session


def transactions(
    envelopes: Iterable[Envelope], config: RelayConfig
) -> list[Transaction]:
    """Return the transactions that one message takes, most often a single one."""
    siblings: list[Transaction] = []
    for envelope in envelopes:
        deadline = Deadline(config.deadline)
        for part in envelope.parts():
            transaction = Transaction(
                envelope=part, config=config, deadline=deadline, siblings=siblings
            )
            siblings.append(transaction)
    return siblings


def deliver(
    messages: Sequence[list[Transaction]],
    config: RelayConfig,
    pool: ConnectionPool[Session],
    *,
    stop: threading.Event | None = None,
    patient: bool = False,
) -> LettermintError | None:
    """Bring the transactions of all messages to their end.

    Adds transactions for recipients that were too many at once. Returns the error that
    any further message would meet as well, if there is one. Once `stop` is set, nothing
    more is begun. A `patient` caller waits for a connection as long as the deadlines
    allow, whatever the pool's timeout. An interrupt propagates when each transaction has
    the outcome that is certain then.
    """
    try:
        return _Delivery(
            messages, config, pool, stop or threading.Event(), patient
        ).to_the_end()
    except BaseException:
        for siblings in messages:
            for transaction in siblings:
                if not transaction.done:
                    transaction.fail(None)
        raise


@dataclass
class _Delivery:
    messages: Sequence[list[Transaction]]
    config: RelayConfig
    pool: ConnectionPool[Session]
    #: Set from outside: another thread of the same batch was interrupted.
    stop: threading.Event
    #: Connections that others hold may come back as late as the deadline.
    patient: bool
    #: Connections lost or not made since the relay last decided on a message.
    failures: int = 0
    #: A connection has just died; parked ones of its age may be dead as well.
    fresh: bool = False
    #: Why the latest connection could not be made.
    unreachable: ConnectFailed | None = None
    #: What any further message would meet as well.
    fatal: LettermintError | None = None

    def to_the_end(self) -> LettermintError | None:
        while todo := self._todo():
            try:
                self._send(self._ready(todo))
            except ConnectFailed as error:
                self.failures += 1
                self.unreachable = error
                if not error.redial or self.failures > self.config.retries:
                    self._fail_all(error)
                else:
                    time.sleep(
                        pause(self.failures, most=todo[0].deadline.seconds_left())
                    )
            except LettermintError as error:
                for transaction in todo:
                    transaction.fail(error)
                # Whoever comes next may find room in the pool, or a new pool.
                return None if isinstance(error, PoolTimeout | PoolClosed) else error
        return self.fatal

    def _todo(self) -> list[Transaction]:
        todo = [
            each for siblings in self.messages for each in siblings if not each.done
        ]
        if not self.stop.is_set():
            return todo
        for transaction in todo:
            transaction.fail(None)
        return []

    def _ready(self, todo: Sequence[Transaction]) -> list[Transaction]:
        """Return those that may go now; wait if all are repeats whose time is to come."""
        first = min(each.not_before for each in todo)
        # Messages that were lost together are repeated together, on one connection.
        ready = [each for each in todo if each.not_before <= first + PAUSE]
        wait = max(each.not_before for each in ready) - time.monotonic()
        if wait > 0:  # sleep(0) lets other processes go first
            time.sleep(wait)
        return ready

    def _send(self, ready: Sequence[Transaction]) -> None:
        """Send as many as one connection carries; the others stay to be done."""
        seconds = ready[0].deadline.seconds_left()
        if seconds <= 0:
            self._expire(ready[0])
            return
        with self.pool.lease(
            seconds=seconds,
            timeout=self.config.timeout,
            force_new=self.fresh,
            ignore_pool_timeout=self.patient,
        ) as lease:
            lease.session.use(self.config)
            room = max(1, lease.max_messages - lease.session.messages)
            count = int(min(room, len(ready)))
            pairs = [(each, each.attempt()) for each in ready[:count]]
            try:
                self._send_over(lease, pairs)
            except BaseException:
                for transaction, attempt in pairs:
                    if attempt.started and not transaction.done:
                        transaction.interrupt(attempt)
                raise

    def _expire(self, transaction: Transaction) -> None:
        """Give up a message whose time is over, for the reason that it took so long."""
        deadline = f"the deadline of {self.config.deadline:g} s is over"
        late = ConnectionLost(f"{deadline}: the message was not sent; send it again")
        transaction.fail(None if transaction.last else self.unreachable or late)

    def _send_over(
        self,
        lease: PooledConnection[Session],
        pairs: Sequence[tuple[Transaction, Attempt]],
    ) -> None:
        attempts = [attempt for _, attempt in pairs]
        served = lease.reused
        for number, (transaction, attempt) in enumerate(pairs, 1):
            attempt.until = transaction.deadline.start()
            transaction.reused = served
            lease.session.send(attempt, attempts[number:])
            transaction.record(attempt)
            if lease.session.closed or self.stop.is_set():
                break
            served = True
            self.failures, self.fresh = 0, False
            self.unreachable = self.fatal = None
        for rider, its_attempt in pairs[number:]:
            # Went out behind the one that was lost, in part or whole.
            if its_attempt.started:
                rider.record(its_attempt)
        if lease.session.closed:
            self._take_loss(transaction, served=served)

    def _take_loss(self, transaction: Transaction, *, served: bool) -> None:
        """Decide what the loss of a connection means for its message and the others."""
        self.fresh = True
        if transaction.done:
            return
        self.pool.count("retries")
        if served or transaction.unconfirmed:
            return
        self.failures += 1
        if self.failures > self.config.retries:
            transaction.fail(None)
        if self.failures > 2 * self.config.retries + 1:
            # As many further messages fared no better, so it is not the message.
            self._fail_all(
                ConnectionLost(
                    f"the relay hung up {self.failures} times in a row: the message was "
                    "not sent; send it again later"
                )
            )

    def _fail_all(self, error: LettermintError) -> None:
        self.fatal = error
        for transaction in self._todo():
            transaction.fail_to_connect(error)
