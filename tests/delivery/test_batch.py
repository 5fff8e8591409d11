"""Long lists over several connections at once: each message ends as over one."""

from __future__ import annotations

import sys
import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from anymail.signals import pre_send
from django.db import connection, transaction

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import backend_config
from django_lettermint.delivery import BatchSender, list_connections
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    PoolTimeout,
    RecipientsRefused,
    SenderRefused,
)
from django_lettermint.results import Outcome
from django_lettermint.smtp import RelayState
from tests.faultserver import FaultServer, On, drop, gate, normal, reply, stall
from tests.listening import receiver
from tests.programs import output
from tests.sending import (
    SHORT,
    backend,
    cases,
    interruptible,
    listening,
    mail,
    mails,
    result,
    sending,
    strike_and_wait,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from django.core.mail import EmailMessage

    from django_lettermint.delivery import Submission
    from django_lettermint.testing import Relay

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


# -- How many connections --------------------------------------------------------------


def width(count: int | None, *, refused: bool = False, **options: Any) -> int:
    """Return how many connections a list may use, maybe of a relay like this."""
    state = RelayState()
    if refused:
        state.refused_pipelining_past_data()
    config = backend_config({"api_token": "t", **options}).relay
    return list_connections(config, state, count)


@pytest.mark.parametrize(
    ("count", "options", "connections"),
    [
        pytest.param(26, {}, 5, id="half of ten"),
        pytest.param(None, {}, 5, id="of unknown length"),
        pytest.param(26, {"pool": {"max_size": 7}}, 3, id="half of seven"),
        pytest.param(26, {"pool": {"max_size": 1}}, 1, id="a pool of one"),
        pytest.param(25, {}, 1, id="a short list"),
        pytest.param(30, {"pool": False}, 1, id="no pool"),
        pytest.param(30, {"batch_connections": 1}, 1, id="one, by option"),
        pytest.param(9, {"batch_connections": 3}, 3, id="three, by option"),
        pytest.param(25, {"pipelining": False}, 5, id="without pipelining"),
        pytest.param(25, {"refused": True}, 5, id="it was refused"),
        pytest.param(10, {"pipelining": False}, 2, id="five mails a connection"),
        pytest.param(9, {"pipelining": False}, 1, id="too few for a second one"),
    ],
)
def test_a_long_list_takes_up_to_half_of_the_pool(
    count: int, options: dict[str, Any], connections: int
) -> None:
    assert width(count, **options) == connections


@pytest.mark.parametrize(
    ("options", "connections"),
    [
        ({}, 1),
        ({"enable-threads": b"false"}, 1),
        ({"enable-threads": b"true"}, 5),
        ({"enable-threads": True}, 5),
        ({"threads": b"4"}, 5),
    ],
)
def test_in_uwsgi_a_list_takes_threads_only_where_they_run(
    options: Mapping[str, object], connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options))
    assert width(50) == connections


def test_a_list_opens_as_many_connections_as_it_may() -> None:
    release = threading.Event()
    with FaultServer([On("mail", do=gate(release))]) as server:
        with sending(backend(server), iter(mails(125))):
            assert server.wait_for(lambda: server.connections == 5)
            release.set()
        assert set(server.delivered.values()) == {1}
        assert server.peak_connections == 5
        assert server.violations == []


def test_a_wrong_token_costs_a_long_list_one_login() -> None:
    with FaultServer([On("auth", do=stall(0.1, reply(535)))]) as server:
        with pytest.raises(AuthenticationFailed):
            backend(server, batch_connections=3).send_messages(mails(60))
        assert server.connections == 1


def test_in_a_full_pool_another_sender_waits_for_one_batch_at_most() -> None:
    release, reached = threading.Event(), threading.Event()
    script = [On("rcpt", match="<1@", do=gate(release, reached))]
    with FaultServer(script) as server:
        sender = backend(server, pool={"max_size": 1})
        connections = pool.get_pool(sender.config.endpoint)
        with sending(sender, mails(100)):
            assert reached.wait(30)
            with sending(sender, [mail("request@example.com")]):
                while not connections.stats()["waiting"]:
                    threading.Event().wait(0.001)
                release.set()
        order = [each.recipients[0] for each in server.deliveries]
        assert len(order) == 101
        assert order.index("request@example.com") <= 25


@contextmanager
def nearly_full(server: FaultServer) -> Iterator[EmailBackend]:
    """Give a backend whose pool of three has room for one, and no patience."""
    limits = {"max_size": 3, "timeout": SHORT / 10, "max_waiting": 1}
    sender = backend(server, batch_connections=3, pool=limits)
    with pool.lease(sender.config, seconds=5), pool.lease(sender.config, seconds=5):
        yield sender


def test_a_batch_waits_for_a_connection_beyond_the_pools_timeout() -> None:
    with FaultServer([On("dot", do=stall(SHORT), times=1)]) as server:
        with nearly_full(server) as sender:
            assert sender.send_messages(mails(60)) == 60
        [stats] = pool.get_stats()
        assert stats["timeouts"] == 0
        assert server.peak_connections <= 3


def test_a_single_batch_waits_no_longer_than_the_pools_timeout() -> None:
    with (
        FaultServer() as server,
        nearly_full(server) as sender,
        pool.lease(sender.config, seconds=5),
        pytest.raises(PoolTimeout, match=r"in 0\.\d+ s"),
    ):
        sender.send_messages(mails(1))


# -- Signals, errors, memory -----------------------------------------------------------


@pytest.mark.django_db
def test_signals_come_in_list_order_in_the_callers_thread_and_transaction() -> None:
    messages, threads = mails(130), set()

    def look(**_: object) -> None:
        threads.add(threading.get_ident())
        assert connection.in_atomic_block

    with (
        FaultServer([On("mail", connection=1, do=stall(0.02))]) as server,
        listening() as heard,
        receiver(pre_send, look),
        transaction.atomic(),
    ):
        assert backend(server).send_messages(messages) == 130
        assert server.peak_connections > 1
    assert threads == {threading.get_ident()}
    assert heard.ended == messages


def test_errors_stay_with_their_messages_and_the_first_is_raised() -> None:
    script = [
        On("rcpt", match="<90@", do=reply(550, "5.1.1 late")),
        On("rcpt", match="<7@", do=stall(0.1, reply(550, "5.1.1 early"))),
    ]
    with FaultServer(script) as server, listening() as heard:
        messages = mails(100)
        with pytest.raises(RecipientsRefused, match="early") as caught:
            backend(server).send_messages(messages)
    results = caught.value.results
    assert list(results) == [result(each) for each in messages]
    failed = [each.to[0] for each, *_ in heard.failed]
    assert failed == ["7@example.org", "90@example.org"]
    assert heard.ended == messages


def test_a_failing_iterator_loses_nothing_that_it_gave() -> None:
    given = mails(60)

    def messages() -> Iterator[EmailMessage]:
        yield from given
        raise OSError("the queue is gone")

    with (
        FaultServer() as server,
        listening() as heard,
        pytest.raises(OSError, match="queue is gone"),
    ):
        backend(server).send_messages(messages())
    assert heard.ended == given
    assert server.delivered == {each.to[0]: 1 for each in given}


def test_memory_does_not_grow_with_the_list(relay: Relay) -> None:
    count, width = 45, 2
    alive: weakref.WeakSet[EmailMessage] = weakref.WeakSet()
    peak = 0

    def messages() -> Iterator[EmailMessage]:
        nonlocal peak
        for number in range(count):
            each = mail(f"{number}@example.org")
            each.body = ("x" * 70 + "\n") * (1024 * 1024 // 71)
            alive.add(each)
            peak = max(peak, len(alive))
            yield each

    sender = EmailBackend(**relay.options(batch_connections=width))
    assert sender.send_messages(messages()) == count
    # Batches of 25 at most: `width` are unfinished, one waits, one is prepared; each
    # ends early, at 8 MB.
    assert peak <= 9 * (width + 2)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("given", [list, iter])
def test_an_interrupt_ends_every_message_of_a_list_with_status_and_signal(
    given: Any, width: int
) -> None:
    with interruptible(SystemExit) as strike:
        script = [On("rcpt", match="<6@", do=strike_and_wait(strike))]
        with FaultServer(script) as server, listening() as heard:
            messages = mails(40)
            sender = backend(server, batch_connections=width, timeout=SHORT)
            with pytest.raises(SystemExit):
                sender.send_messages(given(messages))
            assert result(messages[5]).outcome is NOT_SENT
    # Of an iterator, those that were taken.
    taken = messages[: len(heard.ended)] if given is iter else messages
    assert len(taken) >= 6
    assert heard.ended == taken
    sent = {each.to[0] for each in taken if result(each).outcome is SENT}
    unknown = {each.to[0] for each in taken if result(each).outcome is UNKNOWN}
    assert sent <= set(server.delivered) <= sent | unknown
    assert len(unknown) <= 1  # what this thread was sending


# -- Relays that limit connections -----------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    cases(
        banner_554=On("banner", do=reply(554, "5.7.0 too many", close=True)),
        tls_closed=On("tls", do=drop(rst=True)),
        auth_454=On("auth", do=reply(454, "4.7.0 too many sessions", close=True)),
        login_then_closed=On("auth", do=drop(after=True)),
        mail_421=On("mail", do=reply(421, "4.7.0 too many", close=True)),
        mail_450=On("mail", do=reply(450, "4.7.1 too many for this login")),
        data_451=On("data", do=reply(451, "4.4.5 concurrency limit exceeded")),
    ),
)
def test_a_relay_that_serves_one_connection_gets_the_whole_list(
    refusal: On,
) -> None:
    served = On(refusal.phase, connection=1, do=normal)
    with FaultServer([served, refusal]) as server:
        sender = backend(server, retries=0)
        assert sender.send_messages(mails(40)) == 40
        seen = server.connections
        assert seen <= 10
        assert sender.send_messages(mails(40)) == 40
        assert server.connections == seen
        assert len(server.delivered) == 40
        assert set(server.delivered.values()) == {2}


def test_a_thread_that_gets_no_connection_fails_if_no_other_has_one() -> None:
    with FaultServer([On("banner", do=drop())]) as server:
        messages = mails(50)
        with pytest.raises(ConnectFailed):
            backend(server, batch_connections=2, retries=0).send_messages(messages)
        assert {result(each).outcome for each in messages} == {NOT_SENT}


def test_a_connection_that_has_refused_a_single_mail_costs_a_list_no_mail() -> None:
    held = threading.Event()
    served = On("mail", connection=1, do=normal)
    refusal = On("mail", do=reply(450, "4.7.1 too many for this login"))
    with FaultServer([On("dot", message=1, do=gate(held)), served, refusal]) as server:
        sender = backend(server)
        with sending(sender, [mail()]):
            assert server.wait_for(lambda: server.messages == 1)
            with pytest.raises(SenderRefused):
                sender.send_messages([mail()])
            held.set()
        assert sender.send_messages(mails(40)) == 40
        assert set(server.delivered.values()) == {1}


def test_a_message_that_is_refused_everywhere_is_refused_in_a_wide_list() -> None:
    bad = On("mail", match="bad@", do=reply(450, "4.7.1 not from there"))
    with FaultServer([bad]) as server:
        messages = mails(60)
        for each in messages[::12]:  # one in each batch
            each.from_email = "bad@example.org"
        with pytest.raises(SenderRefused):
            backend(server).send_messages(messages)
        assert set(server.delivered.values()) == {1}
        ends = [result(each).outcome is SENT for each in messages]
        assert ends == [number % 12 > 0 for number in range(60)]
        assert len(server.logins) <= 10


# -- Threads ---------------------------------------------------------------------------


class Message:
    """A message without submissions, which are asked for when it is delivered."""

    def __init__(self, when_asked: Callable[[], object] = lambda: None) -> None:
        self.times = 0
        self._when_asked = when_asked

    @property
    def submissions(self) -> list[Submission]:
        self.times += 1
        self._when_asked()
        return []


@contextmanager
def batch_sender(
    on_finished: Callable[[Any], None] = lambda batch: None,
) -> Iterator[BatchSender[Any]]:
    config = backend_config({"api_token": "t"}).relay
    connections = pool.get_pool(config.endpoint)
    with BatchSender[Any](config, connections, on_finished, width=2) as sender:
        yield sender


def send_all(
    batches: Iterable[list[Message]], on_finished: Callable[[Any], None]
) -> None:
    with batch_sender(on_finished) as sender:
        for each in batches:
            sender.send(each)


@pytest.mark.parametrize("kind", [SystemExit, RuntimeError])
def test_what_a_thread_raises_is_raised_where_its_batch_is_awaited(
    kind: type[BaseException],
) -> None:
    def fail() -> None:
        raise kind

    batches = [[Message(fail)], [Message()], [Message()]]
    finished: list[object] = []
    with pytest.raises(kind):
        send_all(batches, finished.append)
    assert finished == batches


@pytest.mark.parametrize("count", [1, 3])
def test_a_list_of_several_batches_takes_threads_that_end_with_it(count: int) -> None:
    before = {*threading.enumerate()}
    with batch_sender() as sender:
        for _ in range(count):
            sender.send([Message()])
        assert bool({*threading.enumerate()} - before) is (count > 1)
    assert not {*threading.enumerate()} - before


def test_batches_are_delivered_though_the_report_of_one_is_interrupted() -> None:
    batches = [[Message()], [Message()]]
    reported: list[object] = []

    def report(batch: object) -> None:
        reported.append(batch)
        if len(reported) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send_all(batches, report)
    assert reported == batches


def test_a_batch_is_delivered_once_if_no_thread_could_be_started_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, release = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert release.wait(30)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    batches = [[Message(wait)], [Message()], [Message()]]
    finished: list[object] = []
    with batch_sender(finished.append) as sender:
        for each in batches[:2]:
            sender.send(each)
        assert begun.wait(30)
        # The executor has queued the batch by then, and its one thread will find it.
        monkeypatch.setattr(threading.Thread, "start", refuse)
        sender.send(batches[2])
        monkeypatch.undo()
        release.set()
    assert finished == batches
    assert [each.times for [each] in batches] == [1, 1, 1]


LONG_LIST = """
messages = [
    EmailMessage("Hello", "How are you?", "ann@example.org", [f"{n}@example.org"])
    for n in range(60)
]
say(sender.send_messages(messages))
"""


def test_a_long_list_takes_several_connections_in_green_threads(relay: Relay) -> None:
    gevent = "from gevent import monkey; monkey.patch_all()\n"
    assert output(LONG_LIST, relay.options(), before=gevent) == ["60"]
    assert relay.statistics.messages == 60
    assert 1 < relay.statistics.peak <= 5


def test_a_long_list_is_sent_while_python_exits(relay: Relay) -> None:
    at_exit = f"import atexit\natexit.register(lambda: exec({LONG_LIST!r}, globals()))"
    assert output(at_exit, relay.options()) == ["60"]
    assert relay.statistics.messages == 60
