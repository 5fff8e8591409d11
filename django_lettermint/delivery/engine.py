"""The delivery of submissions: it leases connections and carries out decisions.

`policy` decides what comes after a failure.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from django_lettermint.exceptions import (
    ConnectFailed,
    ConnectionLost,
    LettermintError,
    PoolClosed,
    PoolTimeout,
)
from django_lettermint.pool import CloseReason, open_pool
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import MailTransaction, Reply, ServerClosing, Session

from . import policy
from .policy import Decision, Failure

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.pool import ConnectionPool, PooledConnection
    from django_lettermint.smtp import RelayState

    from .submission import Submission

    _Pair = tuple[Submission, MailTransaction]

logger = logging.getLogger("django_lettermint")


class Delivery:
    """Delivers messages, list after list, over the connections of one pool.

    Once another thread sets `stop`, nothing more begins. With `ignore_pool_timeout`, a
    connection is awaited as long as the deadlines allow. `sleep` waits so many seconds,
    or until `stop` is set. `connected` is set once there is a connection. `fatal` holds
    the errors that any further message would meet as well, by the endpoint or by the
    address that they concern, until a new connection serves a message; deliveries may
    share it.
    """

    def __init__(
        self,
        config: RelayConfig,
        connections: ConnectionPool[Session],
        *,
        patience: float = policy.LIST_PATIENCE,
        stop: threading.Event | None = None,
        ignore_pool_timeout: bool = False,
        sleep: Callable[[float], object] | None = None,
        connected: threading.Event | None = None,
        fatal: dict[object, LettermintError] | None = None,
    ) -> None:
        self.config = config
        self._connections = connections
        self._patience = patience
        self._stop = stop or threading.Event()
        self._ignore_pool_timeout = ignore_pool_timeout
        self._sleep = sleep or self._stop.wait
        self._connected = connected
        self._fatal = {} if fatal is None else fatal
        endpoint = config.endpoint
        self._address = endpoint.host, endpoint.port, endpoint.security
        self._messages: Sequence[list[Submission]] = ()
        #: Connections that could not be made or were lost when new, since the last
        #: complete reply to a message.
        self._failures = 0
        #: When the first of them failed, in `time.monotonic()`.
        self._failing_since = 0.0
        #: Messages given up since that reply, because they lost every connection.
        self._given_up = 0
        #: No connection is leased before this time, in `time.monotonic()`.
        self._not_before = 0.0
        #: Why the latest connection could not be made.
        self._unreachable: LettermintError | None = None
        #: A connection has just been lost; idle ones of its age may be dead, too.
        self._force_new = False

    def deliver_all(self, messages: Sequence[list[Submission]]) -> None:
        """Deliver messages, each over connections of its own configuration."""
        usual: list[list[Submission]] = []
        others: dict[RelayConfig, list[list[Submission]]] = {}
        try:
            for each in messages:
                config = each[0].config if each else self.config
                if config is self.config or config == self.config:
                    usual.append(each)
                else:
                    others.setdefault(config, []).append(each)
            self.deliver(usual)
            for config, group in others.items():
                with open_pool(config) as connections:
                    self._with_config(config, connections).deliver(group)
        except BaseException:  # an interrupt: later configurations were not begun
            for submission in chain.from_iterable(messages):
                if not submission.done:
                    submission.fail(None)
            raise

    def deliver(self, messages: Sequence[list[Submission]]) -> None:
        """Bring the submissions of all messages to their end.

        Adds submissions for recipients that were too many at once. An interrupt
        propagates when each submission has the outcome that is certain then.
        """
        self._messages = messages
        try:
            if self._fatal and (known := self._known_failure()):
                self._fail_all(known)
            while due := self._wait_for_due():
                try:
                    self._send(due)
                except (PoolTimeout, PoolClosed) as error:
                    # The next message may find room in the pool, or a new pool.
                    self._end_all(error)
                except LettermintError as error:
                    for submission in due:
                        submission.attempts += 1
                    self._retry_connecting(error, due[0])
        except BaseException:  # an interrupt: every submission gets an outcome
            self._end_all(None)
            raise

    def _with_config(
        self, config: RelayConfig, connections: ConnectionPool[Session]
    ) -> Delivery:
        """Return a delivery like this one for another configuration."""
        return Delivery(
            config,
            connections,
            patience=self._patience,
            stop=self._stop,
            ignore_pool_timeout=self._ignore_pool_timeout,
            sleep=self._sleep,
            connected=self._connected,
            fatal=self._fatal,
        )

    def _wait_for_due(self) -> list[Submission]:
        """Wait until submissions are due, and return them; none if all are done."""
        todo = [each for each in chain.from_iterable(self._messages) if not each.done]
        if not todo:
            return []
        first = min(each.not_before for each in todo)
        # Messages that were lost together are repeated together, on one connection.
        due = [each for each in todo if each.not_before <= first + policy.PAUSE]
        last = max(each.not_before for each in due)
        wait = max(last, self._not_before) - time.monotonic()
        if wait > 0:
            self._sleep(wait)
        if self._stop.is_set():
            self._end_all(None)
            return []
        return due

    def _end_all(self, error: Exception | None) -> None:
        for submission in chain.from_iterable(self._messages):
            if not submission.done:
                submission.fail(error)

    def _send(self, due: Sequence[Submission]) -> None:
        """Send as many as one connection may carry; leave the others for the next."""
        seconds = due[0].deadline.seconds_left()
        if seconds <= 0:
            self._expire(due[0])
            return
        with self._connections.lease(
            seconds=seconds,
            timeout=self.config.timeout,
            force_new=self._force_new,
            ignore_pool_timeout=self._ignore_pool_timeout,
        ) as connection:
            self._force_new = False
            if self._connected:
                self._connected.set()
            if self._stop.is_set():
                return
            room = connection.max_messages - connection.session.messages
            # As int, since there is room for infinitely many if nothing limits them.
            count = int(min(max(1, room), len(due)))
            pairs = [(each, each.begin()) for each in due[:count]]
            try:
                self._send_over(connection, pairs)
            except BaseException:  # an interrupt: what was sent may be out
                for submission, transaction in pairs:
                    if transaction.started and not submission.done:
                        submission.interrupt(transaction)
                raise

    def _expire(self, submission: Submission) -> None:
        """Give up a message after its deadline; the error says what took so long."""
        late = ConnectionLost(
            f"the deadline of {self.config.deadline:g} s has passed: the message was "
            "not sent; send it again"
        )
        lost = submission.last and not submission.last.refused
        submission.fail(None if lost else self._unreachable or late)

    def _send_over(
        self, connection: PooledConnection[Session], pairs: Sequence[_Pair]
    ) -> None:
        """Send until the connection is lost, or is to be left because of a refusal."""
        session, used = connection.session, connection.reused
        transactions = [transaction for _, transaction in pairs]
        transactions[0].after_idle = used
        leaving = False
        for number, (submission, transaction) in enumerate(pairs, 1):
            if leaving and not transaction.started:
                return
            now = time.monotonic()
            transaction.until = now + submission.deadline.seconds_left()
            following = () if leaving else transactions[number:]
            session.send(transaction, following, config=self.config)
            decision = self._conclude(session, submission, transaction, used=used)
            if decision is Decision.WAIT:
                connection.discard(CloseReason.LIMITED)
            if session.closed or self._stop.is_set():
                # Followers may have been written behind this one, in part or whole.
                for follower, its_transaction in pairs[number:]:
                    if its_transaction.started:
                        self._conclude(session, follower, its_transaction, used=True)
                return
            # A 4yz to a repeat before its content may be due to a limit of the session.
            early = transaction.phase not in (Phase.CONTENT, Phase.COMMIT)
            if decision is Decision.FRESH or (decision is Decision.REPEAT and early):
                connection.discard(CloseReason.REFUSED)
                self._force_new = leaving = True
            elif decision in (Decision.ALONE, Decision.WAIT):
                leaving = True
            used = used or bool(transaction.started)

    def _conclude(
        self,
        session: Session,
        submission: Submission,
        transaction: MailTransaction,
        *,
        used: bool,
    ) -> Decision:
        """Decide what comes after a mail transaction, and prepare it."""
        if (
            transaction.pipelined
            or transaction.followed
            or submission.refused_pipelined
        ):
            _learn(session.relay, submission, transaction)
        lost = transaction.failure if session.closed else None
        # The relay may limit connections by login or by sender, which it learns only
        # after the greeting: with fewer connections it might have refused nothing.
        others_open = (
            (lost is not None or self._ignore_pool_timeout)
            and not (transaction.connection_carried or submission.waited_for_others)
            and self._connections.size > 1
        )
        may_retry = False
        if lost and not used and transaction.outcome is Outcome.NOT_SENT:
            session.relay.note_loss()
            # A list with several connections waits for another one without a retry.
            if not (others_open and self._ignore_pool_timeout):
                patience = self._patience
                if not isinstance(lost, ServerClosing):
                    # The message itself may break connections.
                    patience = min(patience, policy.PATIENCE)
                may_retry = self._count_failure(patience)
        decision = submission.record(
            transaction, used=used, may_retry=may_retry, others_open=others_open
        )
        if session.closed:
            self._prepare_after_loss(submission, transaction, decision, used=used)
            return decision
        # The relay serves this session: earlier failures no longer count.
        self._failures = self._given_up = 0
        self._unreachable = None
        if not used:
            self._fatal.pop(self.config.endpoint, None)
            self._fatal.pop(self._address, None)
        return decision

    def _prepare_after_loss(
        self,
        submission: Submission,
        transaction: MailTransaction,
        decision: Decision,
        *,
        used: bool,
    ) -> None:
        self._force_new = decision is not Decision.WAIT
        lost = transaction.failure
        again = (Decision.REPLACE, Decision.WAIT, Decision.RETRY, Decision.REPEAT)
        if decision in again:
            self._connections.count("retries")
            self._log_retry(decision, transaction.phase, lost)
        if decision is Decision.RETRY:
            self._plan_retry(submission)
        elif decision is Decision.GIVE_UP and lost and not used:
            self._give_up(lost)
        elif decision in (Decision.FINAL, Decision.UNKNOWN) and not used:
            # Each new connection may end like this one: do not log in at full speed.
            self._not_before = time.monotonic() + policy.PAUSE

    def _retry_connecting(self, error: LettermintError, first: Submission) -> None:
        """Try again after a pause, or fail all messages."""
        self._unreachable = error
        phase = (isinstance(error, ConnectFailed) and error.phase) or Phase.CONNECT
        code = error.smtp_code
        decision = policy.decide(
            Failure(
                phase=phase,
                reply=Reply(code) if code else None,
                permanent=not isinstance(error, ConnectFailed),
                may_retry=self._count_failure(self._patience),
            )
        )
        if decision is Decision.RETRY:
            self._log_retry(decision, phase, error)
            self._plan_retry(first)
        elif self._may_wait_for_others(error) and self._connections.limit_to_open():
            # The relay serves the open connections, but accepts no further one.
            self._force_new = False
        else:
            self._fail_all(error)

    def _may_wait_for_others(self, error: LettermintError) -> bool:
        """Return whether to wait for an open connection after this error.

        The threads of a list always do: with a single connection, the relay would have
        refused none.
        """
        if not isinstance(error, ConnectFailed):
            return False
        answered = error.step not in ("DNS", "TCP") and error.smtp_code < 500
        return self._ignore_pool_timeout or answered

    def _count_failure(self, patience: float) -> bool:
        """Count a connection that failed; return whether one more may be tried."""
        now = time.monotonic()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        waited = now - self._failing_since
        return policy.may_retry(self._failures, self.config.retries, waited, patience)

    def _plan_retry(self, submission: Submission) -> None:
        """Set the time of the next try; the pause is made after the lease has ended."""
        now = time.monotonic()
        left = self._patience - (now - self._failing_since)
        most = submission.deadline.seconds_left()
        if left > 0:  # else the quick retries are not used up
            most = min(most, left)
        self._not_before = now + policy.backoff(self._failures, most=most)

    def _give_up(self, lost: Exception) -> None:
        """Fail the other messages as well, unless the message broke the connections."""
        # Waiting for another connection did not help: the relay limits none.
        self._connections.lift_limit()
        self._failures = 0
        self._given_up += 1
        if isinstance(lost, ServerClosing):
            error = ConnectionLost(f"{lost}: the message was not sent; send it again")
            self._fail_all(error.with_reply(lost.reply.code, lost.reply.text))
        elif self._given_up > 1:
            self._fail_all(
                ConnectionLost(
                    "the relay hung up on one message after the other: the message was "
                    "not sent; send it again later"
                )
            )

    def _fail_all(self, error: LettermintError) -> None:
        """Fail all messages, and keep the error for later lists that would meet it."""
        self._fatal[self.config.endpoint] = error
        # All other errors may be due to this login, or to its certificates.
        if isinstance(error, ConnectFailed) and error.step != "AUTH":
            self._fatal[self._address] = error
        for submission in chain.from_iterable(self._messages):
            if not submission.done:
                submission.fail_to_connect(error)

    def _known_failure(self) -> LettermintError | None:
        """Return the error of an earlier list that this one would meet as well."""
        known = self._fatal.get(self.config.endpoint)
        away = self._fatal.get(self._address)
        # A relay that refuses new connections may still serve the open ones.
        if isinstance(away, ConnectFailed) and (
            away.step in ("DNS", "TCP") or self._connections.empty
        ):
            return known or away
        return known

    def _log_retry(
        self, decision: Decision, phase: Phase, lost: Exception | None
    ) -> None:
        endpoint = self.config.endpoint
        # Replies may quote addresses, which are logged at DEBUG only.
        reason = type(lost).__name__
        if isinstance(lost, ServerClosing):
            reason = str(lost.reply.code)
        elif isinstance(lost, LettermintError) and lost.smtp_code:
            reason = str(lost.smtp_code)
        logger.info(
            "%s:%d failed at %s (%s): trying again on a new connection (%s)",
            endpoint.host,
            endpoint.port,
            phase,
            reason,
            decision.value,
        )
        logger.debug("%s:%d failed: %s", endpoint.host, endpoint.port, lost)


def _learn(
    relay: RelayState, submission: Submission, transaction: MailTransaction
) -> None:
    """Remember whether the relay supports pipelining behind the end of a message."""
    if transaction.pipelined:
        replies = (transaction.reply, *transaction.replies.values())
        if any(reply and policy.proves_intolerance(reply) for reply in replies):
            relay.refused_pipelining_past_data()
    elif submission.refused_pipelined and transaction.outcome is Outcome.SENT:
        relay.refused_pipelining_past_data()
    if transaction.failure and (transaction.pipelined or transaction.followed):
        relay.lost_while_pipelining()
