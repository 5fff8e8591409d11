"""Whatever happens in whatever order, the pool's promises hold."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from django_lettermint.exceptions import PoolClosed, PoolTimeout
from tests.pool.fakes import Caller, FakePool, too_many_connections

MAX_SIZE = 3
TIMEOUT = 3600
#: Callers that are there when the process forks or the pool is closed.
CROWD = 4

seldom = st.sampled_from([*([False] * 7), True])
#: What opening a connection raises in a step, if anything.
failures = st.sampled_from([*([None] * 6), OSError, too_many_connections])


class PoolMachine(RuleBasedStateMachine):
    """Callers come, wait, hold and leave; connections die; time passes; processes fork."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[Caller] = []
        self.start()

    def start(self) -> None:
        for caller in self.callers:
            caller.end()
        self.callers = []
        # The timeout passes by the pool's clock only, see let_all_time_out().
        self.pool = FakePool(
            max_size=MAX_SIZE, timeout=TIMEOUT, max_messages=5, ping_after=20
        )

    @property
    def waiting(self) -> list[Caller]:
        return [each for each in self.callers if not each.arrived.is_set()]

    @property
    def holders(self) -> list[Caller]:
        return [each for each in self.callers if each.arrived.is_set()]

    def settle(self) -> list[type[Exception]]:
        """Wait until each caller holds, waits or has failed; return the errors of these."""
        while len(self.waiting) != self.pool.stats()["waiting"]:
            threading.Event().wait(0.001)
        failed = [each for each in self.callers if each.error]
        self.callers = [each for each in self.callers if not each.error]
        for caller in failed:
            caller.end()
        return [type(each.error) for each in failed if each.error]

    def fail_to_connect(self, failure: Callable[[], Exception] | None) -> None:
        def before_connect() -> None:
            if failure:
                raise failure()

        self.pool.before_connect = before_connect

    # -- callers -----------------------------------------------------------------------

    @rule(count=st.integers(1, 3), force_new=seldom, failure=failures)
    def ask(
        self, count: int, *, force_new: bool, failure: Callable[[], Exception] | None
    ) -> None:
        self.fail_to_connect(failure)
        for _ in range(count):
            caller = Caller(self.pool, force_new=force_new)
            self.callers.append(caller)
            caller.ask()
            self.settle()

    @precondition(lambda self: self.holders)
    @rule(
        data=st.data(),
        messages=st.integers(0, 3),
        needs_rset=st.booleans(),
        broken=seldom,
        failure=failures,
    )
    def give_back(
        self,
        data: st.DataObject,
        messages: int,
        *,
        needs_rset: bool,
        broken: bool,
        failure: Callable[[], Exception] | None,
    ) -> None:
        self.fail_to_connect(failure)
        caller = data.draw(st.sampled_from(self.holders))
        session = caller.session
        session.messages += messages
        session.needs_rset, session.in_step = needs_rset, not broken
        self.callers.remove(caller)
        caller.end()
        assert session.closed or not broken
        self.settle()

    # When a limit is forgotten, it is a race which of several callers is served.
    @precondition(lambda self: self.waiting and not self.pool.slots.relay_limit)
    @rule()
    def let_all_time_out(self) -> None:
        self.fail_to_connect(None)
        self.pool.now += TIMEOUT + 1
        waiting = len(self.waiting)
        # They look at the clock each second anyway.
        for request in tuple(self.pool.slots.waiting):
            request.wake_ups.put(None)
        while self.waiting:
            threading.Event().wait(0.001)
        assert self.settle() == [PoolTimeout] * waiting

    # -- connections -------------------------------------------------------------------

    @precondition(lambda self: not self.waiting)
    @rule(seconds=st.sampled_from([1, 19, 21, 46, 301]))
    def let_time_pass(self, seconds: float) -> None:
        self.pool.now += seconds

    @precondition(lambda self: self.pool.slots.idle)
    @rule(data=st.data(), visibly=st.booleans())
    def kill_an_idle_one(self, data: st.DataObject, *, visibly: bool) -> None:
        victim = data.draw(st.sampled_from(self.pool.slots.idle)).session
        victim.healthy = not visibly
        victim.answer = lambda: False

    # -- processes ---------------------------------------------------------------------

    @precondition(lambda self: len(self.callers) >= CROWD)
    @rule()
    def fork(self) -> None:
        still_open = self.pool.alive
        self.pool.reset_after_fork()
        assert all(each.closed and not each.ending for each in still_open)
        assert self.pool.empty
        # A child would not have the callers' threads.
        self.start()

    @precondition(lambda self: len(self.callers) >= CROWD)
    @rule()
    def close(self) -> None:
        waiting = len(self.waiting)
        for session in self.pool.close():
            session.close()
        while self.waiting:
            threading.Event().wait(0.001)
        assert self.settle() == [PoolClosed] * waiting
        pool = self.pool
        self.start()
        assert pool.empty
        assert pool.alive == []

    # -- promises ----------------------------------------------------------------------

    @invariant()
    def a_connection_has_one_holder(self) -> None:
        held = [each.session for each in self.holders]
        idle = [each.session for each in self.pool.slots.idle]
        assert len({*held, *idle}) == len(held) + len(idle)
        assert not any(each.closed for each in held)

    @invariant()
    def there_are_never_more_than_max_size(self) -> None:
        assert len(self.pool.alive) <= self.pool.size <= MAX_SIZE

    @invariant()
    def no_slot_is_lost(self) -> None:
        stats = self.pool.stats()
        assert stats["in_use"] == len(self.holders)
        assert stats["waiting"] == len(self.waiting)
        assert stats["size"] == stats["idle"] + stats["in_use"]

    @invariant()
    def no_caller_waits_while_a_slot_is_free(self) -> None:
        if self.waiting:
            limit = self.pool.slots.relay_limit or MAX_SIZE
            assert len(self.holders) >= min(MAX_SIZE, limit)
            assert self.pool.stats()["idle"] == 0

    @invariant()
    def all_that_was_opened_is_accounted_for(self) -> None:
        stats = self.pool.stats()
        assert stats["opened"] == stats["size"] + sum(stats["closed"].values())
        assert stats["messages"] == sum(each.messages for each in self.pool.opened)

    def teardown(self) -> None:
        self.pool.close()
        self.start()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
