"""Processes that fork and processes that end: nobody disturbs anybody, nobody hangs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.pool import close_pools, get_stats
from django_lettermint.smtp import stream as wire
from tests.faults import On, gate, hang
from tests.faultserver import FaultServer
from tests.pool.fakes import locked
from tests.programs import output, program
from tests.sending import backend, mail, spoken

# From Python 3.12 on: what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

T = TypeVar("T")


@contextmanager
def child(act: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Fork; give a function that waits for what `act` returned in the child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        outcome: object
        try:
            outcome = act()
        except BaseException:  # noqa: BLE001 - it is shown in the parent
            outcome = AssertionError(f"in the child: {traceback.format_exc()}")
        os.write(writer, pickle.dumps(outcome))
        os._exit(0)
    os.close(writer)
    result: list[T] = []

    def wait() -> T:
        if not result:
            with os.fdopen(reader, "rb") as pipe:
                outcome = pickle.load(pipe)
            os.waitpid(pid, 0)
            result.append(outcome)
        if isinstance(result[0], AssertionError):
            raise result[0]
        return result[0]

    try:
        yield wait
    finally:
        wait()


def in_child(act: Callable[[], T]) -> T:
    """Fork, and return what `act` returned in the child."""
    with child(act) as wait:
        return wait()


def send(sender: EmailBackend, to: str) -> int:
    return sender.send_messages([mail(to)])


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def senders(server: FaultServer) -> dict[str, int]:
    """Return over which connection each recipient's mail came."""
    return {each.recipients[0]: each.connection for each in server.deliveries}


# Forks.


def test_a_child_sends_over_a_connection_of_its_own(server: FaultServer) -> None:
    sender = backend(server)
    send(sender, "parent@example.org")
    received = server.received[1]

    assert in_child(lambda: send(sender, "child@example.org")) == 1
    assert server.received[1] == received
    send(sender, "parent.again@example.org")
    assert senders(server) == {
        "parent@example.org": 1,
        "child@example.org": 2,
        "parent.again@example.org": 1,
    }
    assert server.violations == []


def test_the_parents_tls_survives_a_child_that_closes_its_pools(
    server: FaultServer,
) -> None:
    sender = backend(server)
    send(sender, "parent@example.org")

    in_child(close_pools)
    send(sender, "parent.again@example.org")

    assert server.connections == 1
    assert "QUIT" not in spoken(server)


def test_a_child_counts_from_zero(server: FaultServer) -> None:
    sender = backend(server)
    send(sender, "parent@example.org")

    assert in_child(get_stats) == []
    assert get_stats()[0]["opened"] == 1


def test_a_child_keeps_no_copy_of_its_parents_sockets(server: FaultServer) -> None:
    sender = backend(server)
    send(sender, "parent@example.org")
    leave, told = os.pipe()
    with child(lambda: os.read(leave, 1)):
        close_pools(timeout=0)
        # With a copy in the child the server would not see the end.
        assert server.wait_for(lambda: server.open_connections == 0)
        os.write(told, b"!")
    os.close(leave)
    os.close(told)


def test_a_fork_while_the_pool_is_locked_does_not_block_the_child(
    server: FaultServer,
) -> None:
    sender = backend(server)
    send(sender, "parent@example.org")
    with locked(pool.get_pool(sender.config.endpoint).slots.lock):
        assert in_child(lambda: send(sender, "child@example.org")) == 1
    send(sender, "parent.again@example.org")

    assert server.connections == 2


def test_a_fork_while_another_thread_sends_disturbs_neither() -> None:
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("dot", gate(release, reached), times=1)]) as server:
        sender = backend(server, pool={"max_size": 1, "timeout": 1})
        busy = threading.Thread(target=send, args=(sender, "parent@example.org"))
        busy.start()
        assert reached.wait(30)
        assert in_child(lambda: send(sender, "child@example.org")) == 1
        release.set()
        busy.join(30)
        send(sender, "parent.again@example.org")

        assert senders(server) == {
            "child@example.org": 2,
            "parent@example.org": 1,
            "parent.again@example.org": 1,
        }


def test_a_fork_while_others_wait_leaves_the_child_without_a_queue() -> None:
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("dot", gate(release, reached), times=1)]) as server:
        sender = backend(server, pool={"max_size": 1, "timeout": 30})
        threads = [
            threading.Thread(target=send, args=(sender, f"{number}@example.org"))
            for number in range(3)
        ]
        for thread in threads:
            thread.start()
        assert reached.wait(30)
        while get_stats()[0]["waiting"] < 2:
            threads[0].join(0.001)
        assert in_child(lambda: send(sender, "child@example.org")) == 1
        release.set()
        for thread in threads:
            thread.join(30)

        assert len(server.delivered) == 4


def test_a_holder_that_forks_keeps_the_connection_and_the_child_gives_it_up(
    server: FaultServer,
) -> None:
    sender = backend(server)
    with pool.lease(sender.config, seconds=30) as lease:
        session = lease.session
        received = server.received[1]

        def leave() -> tuple[bool, int]:
            return session.closed, send(sender, "child@example.org")

        assert in_child(leave) == (True, 1)
        assert not session.closed
        assert server.received[1] == received
    send(sender, "parent@example.org")
    assert senders(server) == {"child@example.org": 2, "parent@example.org": 1}


def test_a_child_closes_connections_that_are_in_no_pools_hands_yet() -> None:
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("auth", do=gate(release, reached))]) as server:
        dialling = threading.Thread(target=send, args=(backend(server), "a@x.test"))
        dialling.start()
        assert reached.wait(5)
        try:
            assert len(wire._open_streams) == 1
            assert in_child(lambda: len(wire._open_streams)) == 0
        finally:
            release.set()
            dialling.join(30)
        assert server.delivered == {"a@x.test": 1}


def test_children_of_children_start_anew_as_well(server: FaultServer) -> None:
    sender = backend(server)
    send(sender, "parent@example.org")

    def grow() -> int:
        send(sender, "child@example.org")
        return in_child(lambda: send(sender, "grandchild@example.org"))

    assert in_child(grow) == 1
    assert sorted(senders(server).values()) == [1, 2, 3]


def _send_one(arguments: tuple[dict[str, Any], str]) -> int:
    options, to = arguments
    return send(EmailBackend(**options), to)


def test_multiprocessing_workers_have_connections_of_their_own(
    server: FaultServer,
) -> None:
    options = server.options()
    send(EmailBackend(**options), "parent@example.org")
    received = server.received[1]
    with multiprocessing.get_context("fork").Pool(2) as workers:
        jobs = [(options, f"{number}@example.org") for number in range(20)]
        assert workers.map(_send_one, jobs, chunksize=1) == [1] * 20
        workers.close()
        workers.join()
    send(EmailBackend(**options), "parent.again@example.org")

    assert set(server.delivered.values()) == {1}
    assert len(server.delivered) == 22
    assert server.connections <= 3
    assert server.received[1].startswith(received)
    assert senders(server)["parent.again@example.org"] == 1
    assert server.violations == []


FORK_IN_C = """
import ctypes
send("parent@example.org")
with pool.lease(sender.config, seconds=10) as connection:
    pid = ctypes.PyDLL(None).fork()  # like a server written in C: no hooks run
    if not pid:
        connection.discard(pool.CloseReason.REFUSED)
if not pid:
    send("child@example.org")
    pool.close_pools()
    say("child done")
    os._exit(0)
os.waitpid(pid, 0)
send("parent.again@example.org")
"""


def test_a_fork_that_python_does_not_know_of_is_noticed(server: FaultServer) -> None:
    assert output(FORK_IN_C, server.options()) == ["child done"]
    assert senders(server) == {
        "parent@example.org": 1,
        "child@example.org": 2,
        "parent.again@example.org": 1,
    }


# Exits.


def test_a_process_that_ends_says_quit(server: FaultServer) -> None:
    output("send('bob@example.org')", server.options())

    assert spoken(server)[-1] == "QUIT"


def test_a_forked_process_that_ends_leaves_its_parents_connections_alone(
    server: FaultServer,
) -> None:
    text = """
send("parent@example.org")
pid = os.fork()
if not pid:
    sys.exit()  # runs the exit handlers
os.waitpid(pid, 0)
send("parent.again@example.org")
"""
    output(text, server.options())

    assert server.connections == 1
    assert spoken(server).count("QUIT") == 1
    assert server.violations == []


def test_mail_can_be_sent_while_the_process_ends(server: FaultServer) -> None:
    text = """
import atexit
send("first@example.org")
atexit.register(send, "last@example.org")
"""
    output(text, server.options())

    assert len(server.delivered) == 2
    assert spoken(server)[-1] == "QUIT"


LEASES = """
def hold():
    with pool.lease(sender.config, seconds=10):
        held.release()
        threading.Event().wait()

held = threading.Semaphore(0)
threading.Thread(target=hold, daemon=True).start()
held.acquire()
"""

ENDS = {
    "idle": "send('bob@example.org')\n",
    "in use by a daemon thread": LEASES,
    "idle and waited for": LEASES
    + """
def wait():
    try:
        pool.get_pool(sender.config.endpoint).lease(seconds=60, timeout=5).__enter__()
    except OSError:
        pass  # the pool is closed

threading.Thread(target=wait, daemon=True).start()
while not pool.get_stats()[0]["waiting"]:
    pass
""",
}


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_a_process_ends_though_the_server_hangs(text: str) -> None:
    with FaultServer([On("quit", hang())]) as server:
        options = server.options(pool={"max_size": 1, "timeout": 30})
        with program(text + "say('ready')\nsys.stdin.read()\n", options) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            # The pool's timeout is longer, and the server hangs until it is stopped.
            _, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (0, "")
