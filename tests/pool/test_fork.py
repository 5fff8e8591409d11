"""Processes that fork and processes that end disturb no connection and do not hang."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import pytest

from django_lettermint import pool
from tests.faults import On, gate, hang
from tests.faultserver import FaultServer
from tests.pool.fakes import locked
from tests.programs import output, program
from tests.sending import backend, mail, spoken

if TYPE_CHECKING:
    from django_lettermint.backend import EmailBackend

# Python 3.12 and later warn of a fork while threads run, which is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

T = TypeVar("T")


def in_child(act: Callable[[], T]) -> T:
    """Fork, and return what `act` returned in the child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        outcome: object
        try:
            outcome = act()
        except BaseException:  # noqa: BLE001 - raised in the parent
            outcome = AssertionError(f"in the child: {traceback.format_exc()}")
        os.write(writer, pickle.dumps(outcome))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result: T = pickle.load(pipe)
    os.waitpid(pid, 0)
    if isinstance(result, AssertionError):
        raise result
    return result


def send(sender: EmailBackend, to: str) -> int:
    return sender.send_messages([mail(to)])


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def connections(server: FaultServer) -> dict[str, int]:
    """Return over which connection each recipient's mail came."""
    return {each.recipients[0]: each.connection for each in server.deliveries}


# -- forks -----------------------------------------------------------------------------


def test_children_and_grandchildren_send_over_connections_of_their_own(
    server: FaultServer,
) -> None:
    sender = backend(server)
    send(sender, "parent@example.org")
    received = server.received[1]
    parents_pool = pool.get_pool(sender.config.endpoint)

    with pool.lease(sender.config, seconds=30) as leased:

        def act() -> int:
            assert leased.session.closed
            assert parents_pool.empty
            assert pool.get_stats() == []
            pool.close_pools()
            send(sender, "child@example.org")
            return in_child(lambda: send(sender, "grandchild@example.org"))

        assert in_child(act) == 1
        assert server.received[1] == received
    send(sender, "parent.again@example.org")
    assert connections(server) == {
        "parent@example.org": 1,
        "child@example.org": 2,
        "grandchild@example.org": 3,
        "parent.again@example.org": 1,
    }
    assert pool.get_stats()[0]["opened"] == 1
    assert server.violations == []


def test_a_child_keeps_no_copy_of_its_parents_connections() -> None:
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("auth", do=gate(release, reached), connection=2)]) as server:
        sender = backend(server)
        with pool.lease(sender.config, seconds=30):
            opening = threading.Thread(target=send, args=(sender, "a@x.test"))
            opening.start()
            assert reached.wait(30)
            waits_for_the_parent, parent = os.pipe()
            child = os.fork()
            if not child:
                os.read(waits_for_the_parent, 1)
                os._exit(0)
            release.set()
            opening.join(30)
        pool.close_pools(timeout=0)
        # With a copy in the child the server would not see the end.
        assert server.wait_for(lambda: server.open_connections == 0)
        assert server.delivered == {"a@x.test": 1}
        assert "QUIT" not in spoken(server)
        os.write(parent, b"!")
        os.waitpid(child, 0)
        os.close(waits_for_the_parent)
        os.close(parent)


def test_a_fork_while_threads_send_and_wait_disturbs_neither_process() -> None:
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
        while pool.get_stats()[0]["waiting"] < 2:
            threads[0].join(0.001)
        with locked(pool.get_pool(sender.config.endpoint).slots.lock):
            assert in_child(lambda: send(sender, "child@example.org")) == 1
        release.set()
        for thread in threads:
            thread.join(30)

        assert connections(server) == {
            "child@example.org": 2,
            **{f"{number}@example.org": 1 for number in range(3)},
        }


FORK_IN_C = """
import ctypes
send("parent@example.org")
with pool.lease(sender.config, seconds=10, force_new=True) as connection:
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


def test_a_fork_without_pythons_hooks_is_noticed(server: FaultServer) -> None:
    assert output(FORK_IN_C, server.options()) == ["child done"]
    assert connections(server) == {
        "parent@example.org": 1,
        "child@example.org": 3,
        "parent.again@example.org": 2,
    }


# -- the end of a process --------------------------------------------------------------

FORK_AND_EXIT = """
import atexit
send("parent@example.org")
pid = os.fork()
if not pid:
    sys.exit()  # runs the exit handlers
os.waitpid(pid, 0)
send("parent.again@example.org")
atexit.register(send, "last@example.org")
"""


def test_a_process_sends_quit_at_its_end_on_its_own_connections_only(
    server: FaultServer,
) -> None:
    output(FORK_AND_EXIT, server.options())

    assert server.connections == 1
    assert len(server.delivered) == 3  # an exit handler can send mail
    assert spoken(server).count("QUIT") == 1
    assert spoken(server)[-1] == "QUIT"
    assert server.violations == []


LEASED_AND_WAITED_FOR = """
def hold():
    with pool.lease(sender.config, seconds=10):
        held.release()
        threading.Event().wait()

def wait():
    try:
        pool.get_pool(sender.config.endpoint).lease(seconds=60, timeout=5).__enter__()
    except OSError:
        pass  # the pool is closed

held = threading.Semaphore(0)
threading.Thread(target=hold, daemon=True).start()
held.acquire()
threading.Thread(target=wait, daemon=True).start()
while not pool.get_stats()[0]["waiting"]:
    pass
"""


@pytest.mark.parametrize("text", ["send('bob@example.org')\n", LEASED_AND_WAITED_FOR])
def test_a_process_ends_although_the_server_hangs_or_threads_wait(text: str) -> None:
    with FaultServer([On("quit", hang())]) as server:
        options = server.options(pool={"max_size": 1, "timeout": 300})
        with program(text + "say('ready')\nsys.stdin.read()\n", options) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            # Sooner than the pool's timeout; the server hangs until it is stopped.
            _, err = process.communicate(timeout=50)

    assert (process.returncode, err) == (0, "")
