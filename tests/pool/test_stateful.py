"""Whatever happens in whatever order, the pool's promises hold."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from django_lettermint.exceptions import PoolClosed, PoolTimeout
from tests.fake_connections import Caller, FakePool

MAX_SIZE = 2
#: Resets the whole machine, so it comes once there is something to reset.
CROWDED = 4

seldom = st.sampled_from([*([False] * 7), True])


class PoolMachine(RuleBasedStateMachine):
    """Callers come, wait, hold and leave; connections die; time passes; processes fork."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[Caller] = []
        self.start()

    def start(self) -> None:
        # Nobody waits in real time: see time_out_a_waiter.
        self.pool = FakePool(
            max_size=MAX_SIZE, timeout=3600, max_messages=5, ping_after=20
        )

    def settle(self) -> list[type[Exception]]:
        """Wait until every caller holds, waits or has left; return the errors of these."""
        while len(self.undecided) != self.pool.stats()["waiting"]:
            threading.Event().wait(0.001)
        failed = [each for each in self.callers if each.error]
        self.callers = [each for each in self.callers if not each.error]
        for caller in failed:
            caller.end()
        return [type(each.error) for each in failed if each.error]

    @property
    def undecided(self) -> list[Caller]:
        return [each for each in self.callers if not each.arrived.is_set()]

    @property
    def holders(self) -> list[Caller]:
        return [each for each in self.callers if each.arrived.is_set()]

    def dismiss_all(self) -> None:
        """Have every caller leave a pool that nobody will use any more."""
        for caller in self.callers:
            caller.end()
        self.callers.clear()
        self.start()

    # What callers do.

    @rule(count=st.integers(1, 3), fresh=seldom, dial_fails=seldom)
    def ask(self, count: int, *, fresh: bool, dial_fails: bool) -> None:
        self.fail_dials(dial_fails)
        for _ in range(count):
            caller = Caller(self.pool, fresh=fresh)
            self.callers.append(caller)
            caller.ask()
            self.settle()

    @precondition(lambda self: self.holders)
    @rule(
        data=st.data(),
        messages=st.integers(0, 3),
        dirty=st.booleans(),
        broken=seldom,
        dial_fails=seldom,
    )
    def give_back(
        self,
        data: st.DataObject,
        messages: int,
        *,
        dirty: bool,
        broken: bool,
        dial_fails: bool,
    ) -> None:
        self.fail_dials(dial_fails)
        caller = data.draw(st.sampled_from(self.holders))
        assert caller.lease
        connection = caller.lease.connection
        connection.messages += messages
        connection.dirty, connection.in_step = dirty, not broken
        self.callers.remove(caller)
        caller.end()
        if broken:
            assert connection.closed
        self.settle()

    @precondition(lambda self: self.undecided)
    @rule(data=st.data())
    def time_out_a_waiter(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(list(self.pool._slots.waiting)))
        waiting = self.pool.stats()["waiting"]
        claim.decided.set()
        while self.pool.stats()["waiting"] == waiting:
            threading.Event().wait(0.001)
        assert self.settle() == [PoolTimeout]

    def fail_dials(self, fails: Any) -> None:
        def before_dial() -> None:
            if fails:
                raise OSError

        self.pool.before_dial = before_dial

    # What happens to connections.

    @rule(seconds=st.sampled_from([1, 19, 21, 46, 301]))
    def let_time_pass(self, seconds: float) -> None:
        self.pool.now += seconds

    @rule(data=st.data(), visibly=st.booleans())
    def kill_an_idle_one(self, data: st.DataObject, *, visibly: bool) -> None:
        idle = [lease.connection for lease in self.pool._slots.idle]
        if idle:
            victim = data.draw(st.sampled_from(idle))
            victim.healthy = not visibly
            victim.answer = lambda: False

    @rule()
    def expire(self) -> None:
        self.pool.expire()
        self.settle()

    # What happens to processes.

    @precondition(lambda self: len(self.callers) >= CROWDED)
    @rule()
    def fork(self) -> None:
        still_open = [each for each in self.pool.dialled if not each.closed]
        goodbyes = [each.goodbyes for each in still_open]
        waiting = list(self.pool._slots.waiting)
        self.pool.abandon()
        assert all(each.closed for each in still_open)
        assert [each.goodbyes for each in still_open] == goodbyes
        assert self.pool.empty
        # These threads would not exist in a child.
        for claim in waiting:
            claim.decided.set()
        self.dismiss_all()

    @precondition(lambda self: len(self.callers) >= CROWDED)
    @rule()
    def close(self) -> None:
        waiting = len(self.undecided)
        for connection in self.pool.close():
            connection.close()
        assert self.settle() == [PoolClosed] * waiting
        pool = self.pool
        self.dismiss_all()
        assert pool.empty
        assert all(each.closed for each in pool.dialled)

    # What always holds.

    @invariant()
    def nobody_shares_a_connection(self) -> None:
        held = [each.lease.connection for each in self.holders if each.lease]
        idle = [lease.connection for lease in self.pool._slots.idle]
        assert len({*held, *idle}) == len(held) + len(idle)
        assert not any(each.closed for each in held)

    @invariant()
    def there_are_never_more_than_max_size(self) -> None:
        still_open = [each for each in self.pool.dialled if not each.closed]
        assert len(still_open) <= self.pool.size <= MAX_SIZE

    @invariant()
    def no_slot_is_lost(self) -> None:
        stats = self.pool.stats()
        assert stats["in_use"] == len(self.holders)
        assert stats["waiting"] == len(self.undecided)
        assert stats["size"] == stats["idle"] + stats["in_use"]

    @invariant()
    def nobody_waits_in_front_of_a_free_slot(self) -> None:
        if self.undecided:
            assert len(self.holders) == MAX_SIZE
            assert self.pool.parked_at() == []

    @invariant()
    def all_that_was_opened_is_accounted_for(self) -> None:
        stats = self.pool.stats()
        assert stats["opened"] == stats["size"] + sum(stats["closed"].values())
        assert stats["messages"] == sum(each.messages for each in self.pool.dialled)

    def teardown(self) -> None:
        for claim in list(self.pool._slots.waiting):
            claim.decided.set()
        for caller in self.callers:
            caller.end()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
