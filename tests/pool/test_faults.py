"""Connections that die, hang, lie and refuse, and mail that gets through all the same."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    DeliveryUnknown,
    LettermintError,
    PoolTimeout,
    RecipientsRefused,
)
from django_lettermint.pool import close_pools, get_pool, get_stats
from django_lettermint.pool.connection import QUIT_TIMEOUT
from tests.faults import Action, On, accept_then, drop, gate, hang, raw, reply, stall
from tests.faultserver import FaultServer
from tests.sending import (
    SHORT,
    backend,
    cases,
    interruptible,
    mail,
    mails,
    spoken,
    strike_and_wait,
)

if TYPE_CHECKING:
    from django_lettermint.pool.stats import PoolStats
    from django_lettermint.testing import Relay


def keep_idle(sender: EmailBackend, count: int) -> None:
    """Have this many connections idle."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(pool.lease(sender.config, seconds=10, force_new=True))


def send_in_threads(
    sender: EmailBackend, threads: int, each: int
) -> list[LettermintError]:
    """Send from threads that begin together; return the errors."""
    errors: list[LettermintError] = []
    start = threading.Barrier(threads)

    def work(thread: int) -> None:
        start.wait(30)
        for number in range(each):
            try:
                sender.send_messages([mail(f"{thread}.{number}@example.org")])
            except LettermintError as error:
                errors.append(error)

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(work, range(threads)))
    return errors


def stats(sender: EmailBackend) -> PoolStats:
    return get_pool(sender.config.endpoint).stats()


def assert_no_slot_is_lost(sender: EmailBackend, slots: int = 0) -> None:
    now = stats(sender)
    assert now["in_use"] == now["waiting"] == 0
    keep_idle(sender, slots or sender.config.endpoint.pool.max_size)


def assert_each_is_delivered_once(server: FaultServer, count: int) -> None:
    assert len(server.delivered) == count
    assert set(server.delivered.values()) == {1}
    assert server.violations == []


# Idle connections that die.


@pytest.mark.parametrize(
    "death",
    cases(
        fin=drop(),
        rst=drop(rst=True),
        service_not_available=reply(421, "4.3.2 shutting down", close=True),
        idle_timeout_of_ses=reply(451, "4.4.2 Timeout waiting for data", close=True),
        bye=reply(221, "Idle timeout, bye", close=True),
        announced_only=reply(421, "4.4.2 going to close"),
        half_a_reply=raw(b"421-4.4"),
    ),
)
@pytest.mark.parametrize("tls", ["implicit", None])
def test_idle_connections_that_died_are_replaced_unnoticed(
    death: Action, tls: str | None
) -> None:
    with FaultServer(tls=tls) as server:
        sender = backend(server)
        keep_idle(sender, 3)
        server.act_on_all(death)

        assert sender.send_messages(mails(3)) == 3
        assert_each_is_delivered_once(server, 3)
        assert {each.connection for each in server.deliveries} == {4}
        assert stats(sender)["closed"] == {"stale": 3}


def test_a_connection_that_died_between_two_messages_is_replaced_unnoticed() -> None:
    with FaultServer() as server, backend(server) as sender:
        sender.send_messages([mail("1@example.org")])
        server.act_on_all(drop())
        sender.send_messages([mail("2@example.org")])

        assert_each_is_delivered_once(server, 2)


def test_a_connection_that_dies_in_silence_is_found_by_a_ping() -> None:
    script = [On("noop", hang(), connection=1)]
    with FaultServer(script) as server:
        sender = backend(server, pool={"ping_after": 0, "timeout": SHORT})
        keep_idle(sender, 1)

        assert sender.send_messages([mail()]) == 1
        assert server.deliveries[0].connection == 2
        assert stats(sender)["pings"] == 1
        assert stats(sender)["closed"] == {"stale": 1}


def test_of_many_that_die_in_silence_only_one_is_waited_for() -> None:
    with FaultServer([On("noop", hang())]) as server:
        options = {"ping_after": 0, "max_size": 8, "timeout": SHORT}
        sender = backend(server, pool=options)
        keep_idle(sender, 8)
        began = time.monotonic()

        assert sender.send_messages([mail()]) == 1
        assert time.monotonic() - began < 2 * SHORT
        assert spoken(server).count("NOOP") == 1
        assert stats(sender)["closed"] == {"stale": 8}


def test_a_connection_that_dies_in_silence_is_found_without_a_ping() -> None:
    script = [On("mail", hang(), connection=1, message=2)]
    with FaultServer(script) as server:
        sender = backend(server, timeout=SHORT, pool={"ping_after": None})
        for message in mails(2):
            sender.send_messages([message])

        assert_each_is_delivered_once(server, 2)
        assert stats(sender)["retries"] == 1


@pytest.mark.parametrize(
    "answer",
    cases(
        hidden_behind_250=raw(b"250 2.0.0 ok\r\n421 4.4.2 idle too long\r\n"),
        hidden_and_closed=raw(b"250 ok\r\n421 bye\r\n", close=True),
        closed_behind_250=reply(250, "ok", close=True),
        of_421=reply(421, "idle too long", close=True),
        of_221=reply(221, "idle timeout"),
        of_251=reply(251, "not quite"),
        of_451=reply(451, "4.4.2 timeout"),
        of_550=reply(550, "too many nonmail commands"),
        none=drop(),
        nonsense=raw(b"what?\r\n"),
    ),
)
def test_only_a_clean_250_is_an_answer_to_a_ping(answer: Action) -> None:
    with FaultServer([On("noop", answer, connection=1)]) as server:
        sender = backend(server, pool={"ping_after": 0})
        keep_idle(sender, 1)

        assert sender.send_messages([mail()]) == 1
        assert server.deliveries[0].connection == 2
        assert spoken(server, 1) == ["NOOP"]


def test_a_ping_that_is_answered_keeps_the_connection() -> None:
    with FaultServer() as server:
        sender = backend(server, pool={"ping_after": 0})
        for message in mails(3):
            sender.send_messages([message])

        assert server.connections == 1
        assert spoken(server).count("NOOP") == 2


# Connections that fail in use.


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
@pytest.mark.parametrize(
    "fault",
    cases(
        service_not_available=reply(421, "4.3.2 shutting down", close=True),
        fin=drop(),
        rst=drop(rst=True),
        nonsense=raw(b"\xff\xfe\r\n"),
    ),
)
def test_a_mail_survives_the_loss_of_a_connection_that_served_before(
    phase: Any, fault: Action
) -> None:
    with FaultServer([On(phase, fault, connection=1, message=2)]) as server:
        sender = backend(server)
        for message in mails(2):
            sender.send_messages([message])

        assert_each_is_delivered_once(server, 2)
        assert server.connections == 2
        assert stats(sender)["closed"] == {"error": 1}


def test_a_late_reply_is_never_taken_for_that_of_another_command() -> None:
    late = gate(threading.Event(), then=reply(550, "5.1.1 late"))
    with FaultServer([On("rcpt", late, times=1)]) as server:
        sender = backend(server, timeout=SHORT)

        for message in mails(2):
            assert sender.send_messages([message]) == 1
        assert_each_is_delivered_once(server, 2)
        assert {each.connection for each in server.deliveries} == {2}


def test_a_connection_whose_last_reply_is_late_is_not_used_again() -> None:
    late = accept_then(stall(2 * SHORT, then=reply(250)))
    with FaultServer([On("dot", late, times=1)]) as server:
        sender = backend(server, final_reply_timeout=SHORT, idempotency=False)

        with pytest.raises(DeliveryUnknown):
            sender.send_messages([mail("1@example.org")])
        assert sender.send_messages([mail("2@example.org")]) == 1
        assert_each_is_delivered_once(server, 2)
        assert server.deliveries[-1].connection == 2


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
def test_an_interrupt_closes_the_connection_and_frees_the_slot(phase: Any) -> None:
    with interruptible() as strike, FaultServer() as server:
        server.script.append(On(phase, strike_and_wait(strike), times=1))
        sender = backend(server, pool={"max_size": 1})

        with pytest.raises(KeyboardInterrupt):
            sender.send_messages([mail()])
        assert stats(sender)["closed"] == {"error": 1}
        assert sender.send_messages([mail("next@example.org")]) == 1
        assert server.deliveries[-1].connection == 2
        assert_no_slot_is_lost(sender)


def test_an_interrupt_while_dialling_frees_the_slot() -> None:
    with interruptible() as strike, FaultServer() as server:
        server.script.append(On("ehlo", strike_and_wait(strike), times=1))
        sender = backend(server, pool={"max_size": 1})

        with pytest.raises(KeyboardInterrupt):
            sender.send_messages([mail()])
        assert stats(sender)["open_errors"] == 1
        assert sender.send_messages([mail()]) == 1


# Refusals.


@pytest.mark.parametrize(
    "rule",
    cases(
        sender=On("mail", reply(550), message=1),
        recipient=On("rcpt", reply(550), message=1),
        content=On("dot", reply(554), message=1),
        for_now=On("dot", reply(451, "4.7.1 greylisted"), message=1),
    ),
)
def test_after_a_refusal_rset_comes_first_and_costs_no_round_trip(rule: On) -> None:
    with FaultServer([rule]) as server:
        sender = backend(server)
        with pytest.raises(LettermintError):
            sender.send_messages([mail("1@example.org")])
        before = len(spoken(server))
        received = len(server.received[1])
        assert sender.send_messages([mail("2@example.org")]) == 1

        assert server.connections == 1
        assert spoken(server)[before:] == ["RSET", "MAIL", "RCPT", "DATA"]
        assert server.received[1][received:].startswith(b"RSET\r\nMAIL FROM:<ann@")
        assert stats(sender)["resets"] == 1
        assert server.violations == []


def test_rset_is_said_once() -> None:
    with FaultServer([On("rcpt", reply(550), message=1)]) as server:
        sender = backend(server)
        with pytest.raises(RecipientsRefused):
            sender.send_messages([mail()])
        for message in mails(3):
            sender.send_messages([message])

        assert spoken(server).count("RSET") == 1


def test_a_refused_rset_costs_the_connection_not_the_mail() -> None:
    script = [On("rcpt", reply(550), message=1), On("rset", reply(421, close=True))]
    with FaultServer(script) as server:
        sender = backend(server)
        with pytest.raises(RecipientsRefused):
            sender.send_messages([mail()])

        assert sender.send_messages([mail("next@example.org")]) == 1
        assert server.connections == 2


# Connections that do not come about.


def test_failed_dials_give_their_slots_back() -> None:
    script = [On("banner", reply(554, "5.3.2 not now", close=True), times=20)]
    with FaultServer(script) as server:
        sender = backend(server, retries=0, pool={"max_size": 2, "timeout": 30})
        errors = send_in_threads(sender, threads=5, each=4)

        assert {type(error) for error in errors} == {ConnectFailed}
        assert len(errors) == stats(sender)["open_errors"] == 20
        assert_no_slot_is_lost(sender)


def test_nobody_is_left_waiting_when_the_server_is_gone() -> None:
    with FaultServer() as server:
        sender = backend(server, retries=0, pool={"max_size": 1, "timeout": 30})
        server.close_door()
        errors = send_in_threads(sender, threads=8, each=2)

    assert [type(error) for error in errors] == [ConnectFailed] * 16
    assert stats(sender)["size"] == 0


def test_a_refused_login_gives_its_slot_back() -> None:
    script = [On("auth", reply(535, "5.7.8 no"), times=8)]
    with FaultServer(script) as server:
        sender = backend(server, pool={"max_size": 1, "timeout": 30})
        errors = send_in_threads(sender, threads=4, each=2)

        assert [type(error) for error in errors] == [AuthenticationFailed] * 8
        assert server.connections == 8
        assert sender.send_messages([mail()]) == 1
        assert_no_slot_is_lost(sender)


# A relay that limits connections.


def limited(server: FaultServer, limit: int) -> Action:
    """Greet no more than so many connections at once."""
    refused = reply(421, "too many connections, try again later", close=True)
    return lambda answer: refused(answer) if server.open_connections > limit else answer


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_all_mail_is_sent_though_the_relay_allows_fewer_connections(tls: str) -> None:
    with FaultServer(tls=tls) as server:
        server.script.append(On("banner", limited(server, 3)))
        sender = backend(server, pool={"max_size": 4, "timeout": 30})

        assert send_in_threads(sender, threads=8, each=5) == []
        assert_each_is_delivered_once(server, 40)
        assert_no_slot_is_lost(sender, 3)


def test_a_relay_that_greets_nobody_makes_nobody_wait_for_ever() -> None:
    with FaultServer(tls=None) as server:
        server.script.append(On("banner", limited(server, 0)))
        sender = backend(server, retries=0, pool={"max_size": 4, "timeout": 30})
        errors = send_in_threads(sender, threads=8, each=1)

        assert {type(error) for error in errors} == {ConnectFailed}
        assert len(errors) == 8
        assert stats(sender)["size"] == 0


# Waiting.


def test_who_waits_in_vain_is_told_that_nothing_was_sent() -> None:
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("dot", gate(release, reached), times=1)]) as server:
        sender = backend(server, pool={"max_size": 1, "timeout": SHORT})
        first = threading.Thread(
            target=sender.send_messages, args=([mail("1@example.org")],)
        )
        first.start()
        assert reached.wait(30)
        with pytest.raises(PoolTimeout) as failure:
            sender.send_messages([mail("2@example.org")])
        release.set()
        first.join(30)

        assert failure.value.retry_safe
        assert failure.value.transient
        assert sender.send_messages([mail("3@example.org")]) == 1
        assert server.connections == 1
        assert list(server.delivered) == ["1@example.org", "3@example.org"]


def test_waits_that_end_just_as_slots_come_free_lose_none() -> None:
    with FaultServer(tls=None) as server:
        sender = backend(server, pool={"max_size": 2, "timeout": 0.002})
        errors = send_in_threads(sender, threads=12, each=15)

        assert {type(error) for error in errors} <= {PoolTimeout}
        assert len(server.delivered) == 12 * 15 - len(errors)
        assert server.peak_connections <= 2
        assert stats(sender)["timeouts"] == len(errors)
        assert_no_slot_is_lost(sender)


def test_fifty_threads_share_four_connections() -> None:
    with FaultServer() as server:
        sender = backend(server, pool={"max_size": 4, "timeout": 60})
        assert send_in_threads(sender, threads=50, each=4) == []

        assert_each_is_delivered_once(server, 200)
        assert server.peak_connections <= 4
        assert server.connections <= 4


@pytest.mark.parametrize("max_messages", [1, 7])
def test_the_server_never_sees_more_connections_than_max_size(
    relay: Relay, max_messages: int
) -> None:
    options = {"max_size": 3, "max_messages": max_messages, "timeout": 60}
    sender = EmailBackend(**relay.options(pool=options))
    assert send_in_threads(sender, threads=10, each=14) == []

    assert relay.statistics.messages == 140
    assert relay.statistics.connections >= 140 / max_messages
    assert relay.statistics.peak <= 3


# Limits.


def test_the_limit_that_the_server_announces_is_kept() -> None:
    features = ("PIPELINING", "8BITMIME", "SIZE 1000000", "LIMITS MAILMAX=2 RCPTMAX=9")
    with FaultServer(features=features) as server:
        sender = backend(server)
        sender.send_messages(mails(5))
        sender.send_messages([mail("6@example.org")])

        assert_each_is_delivered_once(server, 6)
        assert [each.connection for each in server.deliveries] == [1, 1, 2, 2, 3, 3]


def test_connections_that_reached_a_limit_say_quit() -> None:
    with FaultServer() as server:
        sender = backend(server, pool={"max_messages": 1})
        for message in mails(2):
            sender.send_messages([message])

        assert server.wait_for(lambda: spoken(server).count("QUIT") == 2)


# As Django has it.


def test_a_server_that_never_answers_quit_costs_fifty_milliseconds() -> None:
    with FaultServer([On("quit", hang())]) as server:
        sender = backend(server, pool={"max_messages": 1})
        began = time.monotonic()
        sender.send_messages([mail()])

        assert time.monotonic() - began < 10 * QUIT_TIMEOUT
        assert server.wait_for(lambda: server.open_connections == 0)


def test_open_sees_to_a_live_connection() -> None:
    with FaultServer() as server:
        sender = backend(server)

        assert sender.open() is True
        assert sender.open() is False
        server.act_on_all(drop())
        assert sender.open() is True
        assert server.connections == 2


def test_open_raises_what_is_in_the_way() -> None:
    with FaultServer([On("auth", reply(535))]) as server:
        with pytest.raises(AuthenticationFailed):
            backend(server).open()
        assert backend(server, fail_silently=True).open() is None


def test_nested_blocks_and_closing_twice_are_harmless() -> None:
    with FaultServer() as server:
        with backend(server) as sender:
            with sender:
                sender.send_messages([mail("1@example.org")])
            sender.send_messages([mail("2@example.org")])
            sender.close()
        sender.close()
        sender.send_messages([mail("3@example.org")])

        assert_each_is_delivered_once(server, 3)
        assert server.connections == 1


def test_a_block_in_one_thread_keeps_nothing_from_the_others() -> None:
    with FaultServer() as server:
        options = {"max_size": 1, "timeout": 5}
        with backend(server, pool=options):
            errors = send_in_threads(backend(server, pool=options), threads=4, each=2)

        assert errors == []
        assert server.connections == 1


def test_a_pool_closed_while_mail_is_on_its_way_lets_it_arrive() -> None:
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("dot", gate(release, reached), times=1)]) as server:
        sender = backend(server)
        busy = threading.Thread(target=sender.send_messages, args=([mail()],))
        busy.start()
        assert reached.wait(30)
        close_pools()
        release.set()
        busy.join(30)

        assert_each_is_delivered_once(server, 1)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert get_stats() == []
