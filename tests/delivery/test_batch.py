"""Long lists over several connections at once: each message ends as over one."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from anymail.signals import pre_send
from django.core.mail import EmailMessage

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import backend_config
from django_lettermint.delivery import BatchSender
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    LettermintError,
    PoolTimeout,
    RecipientsRefused,
)
from django_lettermint.outgoing import OutgoingMessage
from django_lettermint.results import Outcome
from tests.faultserver import FaultServer, On, drop, gate, reply, stall
from tests.listening import listening, names, receiver
from tests.sending import (
    SHORT,
    backend,
    interruptible,
    mail,
    mails,
    result,
    strike_and_wait,
)
from tests.sending import relay as relay_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_lettermint.delivery import Submission
    from django_lettermint.testing import Relay
    from tests.faults import Action, Answer, Phase


def ended(heard: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [
        arguments["message"].to[0]
        for name, arguments in heard
        if name in {"message_sent", "message_failed"}
    ]


def test_a_long_list_uses_as_many_connections_as_it_may() -> None:
    release = threading.Event()
    with FaultServer([On("mail", do=gate(release), times=3)]) as server:
        sender = backend(server, batch_connections=3)
        work = threading.Thread(target=sender.send_messages, args=(mails(90),))
        work.start()
        try:
            assert server.wait_for(lambda: server.connections == 3)
        finally:
            release.set()
            work.join(10)
        assert server.delivered == Counter(f"{n}@example.org" for n in range(1, 91))
        assert server.peak_connections == 3
        assert server.violations == []


def test_signals_come_in_list_order_in_the_callers_thread() -> None:
    threads = set()
    with FaultServer([On("mail", connection=1, do=stall(0.02))]) as server:
        sender = backend(server, batch_connections=4)
        with (
            listening() as heard,
            receiver(pre_send, lambda **_: threads.add(threading.get_ident())),
        ):
            assert sender.send_messages(iter(mails(130))) == 130
    assert ended(heard) == [f"{n}@example.org" for n in range(1, 131)]
    assert threads == {threading.get_ident()}


def test_errors_stay_with_their_messages_and_the_first_is_raised() -> None:
    script = [
        On("rcpt", match="<90@", do=reply(550, "5.1.1 late")),
        On("rcpt", match="<7@", do=stall(0.1, reply(550, "5.1.1 early"))),
    ]
    with FaultServer(script) as server, listening() as heard:
        messages = mails(100)
        with pytest.raises(RecipientsRefused, match="early") as caught:
            backend(server, batch_connections=4).send_messages(messages)
    results = caught.value.results
    assert list(results) == [result(each) for each in messages]
    refused = [
        n for n, each in enumerate(results, 1) if each.outcome is not Outcome.SENT
    ]
    assert refused == [7, 90]
    assert ended(heard) == [each.to[0] for each in messages]


def test_the_pools_cap_holds() -> None:
    with FaultServer() as server:
        options: dict[str, Any] = {"batch_connections": 3, "pool": {"max_size": 3}}
        with pool.lease(relay_config(server, **options), seconds=5):
            assert backend(server, **options).send_messages(mails(100)) == 100
        assert server.peak_connections <= 3


def test_a_batch_waits_for_a_connection_beyond_the_pools_timeout() -> None:
    script = [On("dot", do=stall(SHORT), times=1)]
    with FaultServer(script) as server:
        limits = {"max_size": 3, "timeout": SHORT / 10, "max_waiting": 1}
        options: dict[str, Any] = {"batch_connections": 3, "pool": limits}
        config = relay_config(server, **options)
        with pool.lease(config, seconds=5), pool.lease(config, seconds=5):
            assert backend(server, **options).send_messages(mails(60)) == 60
        [stats] = pool.get_stats()
        assert stats["timeouts"] == 0


def test_a_single_batch_waits_no_longer_than_the_pools_timeout() -> None:
    with FaultServer() as server:
        options: dict[str, Any] = {
            "batch_connections": 2,
            "pool": {"max_size": 2, "timeout": SHORT / 10, "max_waiting": 1},
        }
        config = relay_config(server, **options)
        with (
            pool.lease(config, seconds=5),
            pool.lease(config, seconds=5),
            pytest.raises(PoolTimeout, match=r"in 0\.\d+ s"),
        ):
            backend(server, **options).send_messages(mails(1))


def test_a_batch_does_not_wait_beyond_the_deadline() -> None:
    with FaultServer() as server:
        options: dict[str, Any] = {
            "batch_connections": 2,
            "deadline": SHORT,
            "pool": {"max_size": 2},
        }
        config = relay_config(server, **options)
        messages = mails(4)
        with (
            pool.lease(config, seconds=5),
            pool.lease(config, seconds=5),
            pytest.raises(LettermintError, match="became free"),
        ):
            backend(server, **options).send_messages(messages)
        assert {result(each).outcome for each in messages} == {Outcome.NOT_SENT}
        assert not server.delivered


def test_memory_does_not_grow_with_the_list(
    relay: Relay,
) -> None:
    count, width = 60, 2
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


def test_a_pre_send_receivers_error_comes_after_earlier_messages_were_reported() -> (
    None
):
    def object_to(message: EmailMessage, **_: object) -> None:
        if message.to == ["77@example.org"]:
            raise RuntimeError("not this one")

    messages = mails(100)
    with (
        FaultServer() as server,
        listening() as heard,
        receiver(pre_send, object_to),
        pytest.raises(RuntimeError, match="not this one"),
    ):
        backend(server, batch_connections=4).send_messages(messages)
    assert ended(heard) == [f"{n}@example.org" for n in range(1, 77)]
    assert server.delivered == Counter(ended(heard))


def test_a_failing_iterator_loses_nothing_that_it_gave() -> None:
    def messages() -> Iterator[EmailMessage]:
        yield from mails(60)
        raise OSError("the queue is gone")

    with (
        FaultServer() as server,
        listening() as heard,
        pytest.raises(OSError, match="queue is gone"),
    ):
        backend(server, batch_connections=2).send_messages(messages())
    assert names(heard).count("message_sent") == 60
    assert sum(server.delivered.values()) == 60


def test_a_refused_login_ends_the_batch_at_once() -> None:
    with FaultServer([On("auth", do=reply(535, "5.7.8 no"))]) as server:
        messages = mails(200)
        with listening() as heard, pytest.raises(AuthenticationFailed):
            backend(server, batch_connections=3).send_messages(messages)
        # Each connection may have been on its way when the first one was refused.
        assert len(server.logins) <= 4
    assert names(heard) == ["message_failed"] * 200
    assert {result(each).outcome for each in messages} == {Outcome.NOT_SENT}


def test_a_relay_that_is_gone_fails_every_message_at_once() -> None:
    with FaultServer() as server:
        sender = backend(server, batch_connections=2, retries=0)
    messages = mails(60)
    with pytest.raises(ConnectFailed):
        sender.send_messages(messages)
    assert {result(each).outcome for each in messages} == {Outcome.NOT_SENT}


def test_a_lost_connection_is_replaced_by_the_thread_that_lost_it() -> None:
    with FaultServer([On("mail", message=30, do=drop())]) as server:
        assert backend(server, batch_connections=3).send_messages(mails(90)) == 90
        assert server.delivered == Counter(f"{n}@example.org" for n in range(1, 91))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_stops_all_threads_and_every_message_has_an_outcome(
    kind: type[BaseException],
) -> None:
    with interruptible(kind) as strike:
        script = [On("dot", message=20, do=strike_and_wait(strike))]
        with FaultServer(script) as server, listening() as heard:
            messages = mails(150)
            sender = backend(
                server,
                batch_connections=2,
                final_reply_timeout=SHORT,
                idempotency=False,
            )
            with pytest.raises(kind):
                sender.send_messages(iter(messages))
            delivered = set(server.delivered)
    reported = ended(heard)
    assert reported == [each.to[0] for each in messages[: len(reported)]]
    outcomes = {each.to[0]: result(each).outcome for each in messages[: len(reported)]}
    sent = {who for who, outcome in outcomes.items() if outcome is Outcome.SENT}
    unknown = {who for who, outcome in outcomes.items() if outcome is Outcome.UNKNOWN}
    assert sent <= delivered <= sent | unknown
    assert len(unknown) == 1
    assert len(delivered) < 150


@pytest.mark.parametrize(
    ("phase", "refuse"),
    [
        ("banner", drop()),
        ("banner", reply(554, "5.7.0 too many connections", close=True)),
        ("tls", drop(rst=True)),
        ("auth", reply(454, "4.7.0 too many sessions", close=True)),
    ],
)
def test_a_thread_that_gets_no_connection_waits_for_that_of_another(
    phase: Phase, refuse: Action
) -> None:
    refused = threading.Event()
    with FaultServer() as server:

        def allow_one(answer: Answer) -> Answer:
            if server.connections == 1:
                return answer
            refused.set()
            return refuse(answer)

        server.script = [
            On(phase, do=allow_one),
            On("dot", message=2, do=gate(refused)),
        ]
        sender = backend(server, batch_connections=2, retries=0)
        assert sender.send_messages([mail()]) == 1
        assert sender.send_messages(mails(50)) == 50
        assert server.connections == 2


def test_a_thread_that_gets_no_connection_fails_if_no_other_has_one() -> None:
    with FaultServer([On("banner", do=drop())]) as server:
        messages = mails(50)
        with pytest.raises(ConnectFailed):
            backend(server, batch_connections=2, retries=0).send_messages(messages)
        assert {result(each).outcome for each in messages} == {Outcome.NOT_SENT}


def test_an_iterator_without_messages_sends_none() -> None:
    with FaultServer() as server:
        assert backend(server, batch_connections=2).send_messages(iter([])) == 0
        assert server.connections == 0


@pytest.mark.parametrize("kind", [SystemExit, RuntimeError])
def test_what_a_thread_raises_is_raised_where_its_batch_is_awaited(
    kind: type[BaseException],
) -> None:
    class Broken:
        @property
        def submissions(self) -> list[Submission]:
            raise kind

    class Whole:
        submissions: ClassVar[list[Submission]] = []

    config = backend_config({"api_token": "t"}).relay
    batches: list[list[Any]] = [[Broken()], [Whole()], [Whole()]]
    finished: list[Any] = []

    def send_all() -> None:
        connections = pool.get_pool(config.endpoint)
        with BatchSender[Any](config, connections, finished.append, width=2) as sender:
            for batch in batches:
                sender.send(batch)

    with pytest.raises(kind):
        send_all()
    assert finished == batches


def test_the_threads_of_a_list_have_ended_with_it() -> None:
    config = backend_config({"api_token": "t"}).relay
    connections = pool.get_pool(config.endpoint)
    nothing = SimpleNamespace(submissions=[])
    before = threading.enumerate()

    def started() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each not in before]

    with BatchSender[Any](config, connections, lambda _: None, width=2) as sender:
        for _ in range(3):
            sender.send([nothing])
        assert started()
    assert not started()


def test_a_single_batch_takes_no_thread() -> None:
    during = []

    def count(**_: object) -> None:
        during.append(threading.active_count())

    with FaultServer() as server:
        sender = backend(server, batch_connections=4)
        sender.send_messages([mail()])
        before = threading.active_count()
        with receiver(pre_send, count):
            assert sender.send_messages([mail()]) == 1
        assert during == [before] == [threading.active_count()]


AT_EXIT = """
import atexit, sys
from django.conf import settings
settings.configure()
from django.core.mail import EmailMessage
from django_lettermint.backend import EmailBackend
sender = EmailBackend(
    api_token=sys.argv[1], host="127.0.0.1", port=int(sys.argv[2]), security="tls",
    ca_file=sys.argv[3], batch_connections=2,
)
mails = [EmailMessage("Hi", "", "a@example.org", ["b@example.org"]) for _ in range(60)]
atexit.register(lambda: print(sender.send_messages(mails)))
"""


def test_a_batch_can_be_sent_while_python_exits() -> None:
    with FaultServer() as server:
        options = server.options()
        arguments = [str(options[name]) for name in ("api_token", "port", "ca_file")]
        done = subprocess.run(
            [sys.executable, "-c", AT_EXIT, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("60\n", "")
        assert sum(server.delivered.values()) == 60


def test_batches_are_delivered_though_the_report_of_one_is_interrupted() -> None:
    reported: list[object] = []

    def report(batch: object) -> None:
        reported.append(batch)
        if len(reported) == 1:
            raise KeyboardInterrupt

    with FaultServer() as server:
        config = backend(server, batch_connections=2).config
        batches = [[OutgoingMessage(EmailMessage())] for _ in range(2)]
        connections = pool.get_pool(config.endpoint)
        sender: BatchSender[OutgoingMessage] = BatchSender(
            config, connections, report, width=2
        )
        for batch in batches:
            sender.send(batch)
        with pytest.raises(KeyboardInterrupt):
            sender.__exit__(None, None, None)
    assert reported == batches


def test_a_batch_is_delivered_once_if_no_thread_could_be_started_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, release = threading.Event(), threading.Event()

    class Message:
        reads = 0

        @property
        def submissions(self) -> list[Submission]:
            self.reads += 1
            return []

    class Waiting(Message):
        @property
        def submissions(self) -> list[Submission]:
            begun.set()
            assert release.wait(30)
            return []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    config = backend_config({"api_token": "t"}).relay
    batches: list[list[Any]] = [[Waiting()], [Message()], [Message()]]
    finished: list[Any] = []
    with BatchSender[Any](
        config, pool.get_pool(config.endpoint), finished.append, width=2
    ) as sender:
        sender.send(batches[0])
        sender.send(batches[1])
        assert begun.wait(30)
        # The executor has queued the batch by then, and its one thread will find it.
        monkeypatch.setattr(threading.Thread, "start", refuse)
        sender.send(batches[2])
        monkeypatch.undo()
        release.set()
    assert finished == batches
    assert [batch[0].reads for batch in batches[1:]] == [1, 1]


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("given", [list, iter])
def test_an_interrupt_ends_every_message_of_a_list_with_status_and_signal(
    given: Any, width: int
) -> None:
    with interruptible(SystemExit) as strike:
        script = [On("rcpt", match="<6@", do=strike_and_wait(strike))]
        with FaultServer(script) as server, listening() as heard:
            messages = mails(40)
            with pytest.raises(SystemExit):
                backend(server, batch_connections=width, timeout=SHORT).send_messages(
                    given(messages)
                )
            assert result(messages[5]).outcome is Outcome.NOT_SENT
    reported = ended(heard)
    # Of an iterator, those that were taken.
    count = len(reported) if given is iter else 40
    assert count >= 6
    assert reported == [each.to[0] for each in messages[:count]]
    outcomes = {each.to[0]: result(each).outcome for each in messages[:count]}
    sent = {who for who, outcome in outcomes.items() if outcome is Outcome.SENT}
    unknown = {who for who, outcome in outcomes.items() if outcome is Outcome.UNKNOWN}
    assert sent <= set(server.delivered) <= sent | unknown
    assert len(unknown) <= 1  # what this thread was sending
