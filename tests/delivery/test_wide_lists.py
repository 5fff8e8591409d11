"""Long lists use half of the pool by default, and leave the other half to others."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from anymail.signals import pre_send
from django.db import connection, transaction

from django_lettermint.exceptions import AuthenticationFailed, SenderRefused
from django_lettermint.pool import get_pool
from django_lettermint.results import Outcome
from tests.faultserver import FaultServer, On, drop, gate, normal, raw, reply
from tests.listening import listening, receiver
from tests.programs import output
from tests.sending import backend, cases, mail, mails, result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from django.core.mail import EmailMessage

    from django_lettermint.backend import EmailBackend
    from django_lettermint.testing import Relay


@contextmanager
def sending(sender: EmailBackend, *lists: Iterable[EmailMessage]) -> Iterator[None]:
    """Send lists, each in a thread of its own; all are sent at the end."""
    threads = [
        threading.Thread(target=sender.send_messages, args=(each,)) for each in lists
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(30)


def takes(connections: int, messages: Iterable[EmailMessage], **options: Any) -> bool:
    """Return whether a list takes so many connections at once and arrives."""
    release = threading.Event()
    with FaultServer([On("mail", do=gate(release))]) as server:
        with sending(backend(server, **options), messages):
            reached = server.wait_for(lambda: server.connections >= connections)
            release.set()
        assert server.delivered
        assert set(server.delivered.values()) == {1}
        assert server.violations == []
        return reached and server.peak_connections == connections


@pytest.mark.parametrize(
    ("count", "options", "connections"),
    [
        pytest.param(26, {}, 5, id="half of ten"),
        pytest.param(26, {"pool": {"max_size": 7}}, 3, id="half of seven"),
        pytest.param(26, {"pool": {"max_size": 1}}, 1, id="a pool of one"),
        pytest.param(25, {}, 1, id="a short list"),
        pytest.param(30, {"pool": False}, 1, id="no pool"),
        pytest.param(30, {"batch_connections": 1}, 1, id="one, by option"),
        pytest.param(9, {"batch_connections": 3}, 3, id="three, by option"),
        pytest.param(25, {"pipelining": False}, 5, id="without pipelining"),
        pytest.param(10, {"pipelining": False}, 2, id="five mails a connection"),
        pytest.param(9, {"pipelining": False}, 1, id="too few for a second one"),
    ],
)
def test_a_long_list_takes_half_of_the_pool(
    count: int, options: dict[str, Any], connections: int
) -> None:
    assert takes(connections, mails(count), **options)


def test_a_list_of_unknown_length_takes_half_of_the_pool() -> None:
    assert takes(5, iter(mails(125)))


def test_a_short_list_of_unknown_length_takes_one_connection() -> None:
    assert takes(1, iter(mails(25)))


def test_other_senders_get_a_connection_while_a_long_list_is_sent() -> None:
    release = threading.Event()
    with FaultServer([On("rcpt", match="@example.org", do=gate(release))]) as server:
        sender = backend(server)
        with sending(sender, mails(100)):
            try:
                assert server.wait_for(lambda: server.connections == 5)
                assert sender.send_messages([mail("request@example.com")]) == 1
                assert [*server.delivered] == ["request@example.com"]
            finally:
                release.set()


def test_in_a_full_pool_another_sender_waits_for_one_batch_at_most() -> None:
    release, reached = threading.Event(), threading.Event()
    script = [On("rcpt", match="<1@", do=gate(release, reached))]
    with FaultServer(script) as server:
        sender = backend(server, pool={"max_size": 1})
        pool = get_pool(sender.config.endpoint)
        with sending(sender, mails(100)):
            assert reached.wait(30)
            with sending(sender, [mail("request@example.com")]):
                while not pool.stats()["waiting"]:
                    threading.Event().wait(0.001)
                release.set()
        order = [each.recipients[0] for each in server.deliveries]
        assert len(order) == 101
        assert order.index("request@example.com") <= 25


@pytest.mark.parametrize(
    ("told", "connections"),
    [
        ({}, 1),
        ({"enable-threads": b"false"}, 1),
        ({"enable-threads": b"true"}, 5),
        ({"enable-threads": True}, 5),
        ({"threads": b"4"}, 5),
    ],
)
def test_in_uwsgi_a_list_takes_threads_only_where_they_run(
    told: Mapping[str, object], connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=told))
    assert takes(connections, mails(50))


def test_a_relay_that_has_refused_pipelining_gets_lists_over_several_connections() -> (
    None
):
    release = threading.Event()
    refusal = On("mail", behind_end=True, do=reply(503, "5.5.1 not now"))
    with FaultServer([refusal]) as server:
        sender = backend(server)
        assert sender.send_messages(mails(10)) == 10
        assert server.peak_connections == 1

        server.script.insert(0, On("mail", do=gate(release)))
        with sending(sender, mails(10)):
            try:
                assert server.wait_for(lambda: server.connections == 2)
            finally:
                release.set()
        assert set(server.delivered.values()) == {2}


def test_a_wrong_token_is_found_out_by_one_login() -> None:
    with FaultServer([On("auth", do=reply(535, "5.7.8 no"))]) as server:
        messages = mails(100)
        with pytest.raises(AuthenticationFailed):
            backend(server).send_messages(messages)
        assert server.connections == 1
        assert {result(each).outcome for each in messages} == {Outcome.NOT_SENT}


def test_a_relay_that_refuses_every_message_sees_few_logins() -> None:
    with FaultServer() as server:
        sender = backend(server)
        assert sender.send_messages(mails(3)) == 3
        server.script.append(On("mail", do=reply(452, "4.5.3 too many messages")))
        with pytest.raises(SenderRefused):
            sender.send_messages(mails(100))
        assert len(server.logins) <= 10


@pytest.mark.parametrize(
    "refusal",
    cases(
        login_then_closed=On("auth", do=drop(after=True)),
        login_then_421=On("auth", do=raw(b"235 ok\r\n421 too many\r\n", close=True)),
        mail_421=On("mail", do=reply(421, "4.7.0 too many", close=True)),
        mail_450=On("mail", do=reply(450, "4.7.1 too many for this login")),
        rcpt_421=On("rcpt", do=reply(421, "4.7.0 too many", close=True)),
        data_451=On("data", do=reply(451, "4.4.5 concurrency limit exceeded")),
    ),
)
def test_a_relay_that_serves_one_connection_of_a_login_gets_the_whole_list(
    refusal: On,
) -> None:
    served = On(refusal.phase, connection=1, do=normal)
    with FaultServer([served, refusal]) as server:
        sender = backend(server)
        assert sender.send_messages(mails(40)) == 40
        seen = server.connections
        assert seen <= 10
        assert sender.send_messages(mails(40)) == 40
        assert server.connections == seen
        assert len(server.delivered) == 40
        assert set(server.delivered.values()) == {2}


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
        ends = [result(each).outcome is Outcome.SENT for each in messages]
        assert ends == [number % 12 > 0 for number in range(60)]
        assert len(server.logins) <= 10


@pytest.mark.django_db
def test_receivers_of_a_wide_list_run_in_the_callers_thread_and_transaction() -> None:
    threads = set()

    def look(**_: object) -> None:
        threads.add(threading.get_ident())
        assert connection.in_atomic_block

    with (
        FaultServer() as server,
        listening() as heard,
        receiver(pre_send, look),
        transaction.atomic(),
    ):
        assert backend(server).send_messages(mails(60)) == 60
        assert server.peak_connections > 1
    assert threads == {threading.get_ident()}
    sent = [
        arguments["message"].to[0]
        for name, arguments in heard
        if name == "message_sent"
    ]
    assert sent == [f"{number}@example.org" for number in range(1, 61)]


GEVENT = "from gevent import monkey; monkey.patch_all()\n"
LONG_LIST = """
messages = [
    EmailMessage("Hello", "How are you?", "ann@example.org", [f"{n}@example.org"])
    for n in range(60)
]
say(sender.send_messages(messages))
"""


@pytest.mark.parametrize("before", cases(threads="", gevent=GEVENT))
def test_a_long_list_goes_wide_in_a_process_of_its_own(
    relay: Relay, before: str
) -> None:
    assert output(LONG_LIST, relay.options(), before=before) == ["60"]
    assert relay.statistics.messages == 60
    assert 1 < relay.statistics.peak <= 5


AT_EXIT = "import atexit\natexit.register(lambda: exec(LONG_LIST))\n"


def test_a_long_list_is_sent_while_python_exits(relay: Relay) -> None:
    text = f"LONG_LIST = {LONG_LIST!r}\n{AT_EXIT}"
    assert output(text, relay.options()) == ["60"]
    assert relay.statistics.messages == 60
