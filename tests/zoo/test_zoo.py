"""Each mail once, whatever a real server does: refuse, limit, hang up, restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import (
    AuthenticationFailed,
    DeliveryUnknown,
    LettermintError,
    RecipientsRefused,
    SenderRefused,
)
from django_lettermint.results import Outcome
from tests.sending import mail, mails, result
from tests.zoo.counting import check, each_once, outcomes
from tests.zoo.exim import Exim
from tests.zoo.haraka import Haraka
from tests.zoo.postfix import Postfix

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from tests.zoo.server import Server

pytestmark = [pytest.mark.external, pytest.mark.zoo]

#: Seconds that a server is away, as in an upgrade.
RESTART = 1.5

SERVERS = [Exim, Haraka, Postfix]


@pytest.fixture(scope="module", params=SERVERS)
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    with request.param() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.forget()
    return running


@pytest.fixture(params=["tls", "starttls"])
def security(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_single_mails_arrive(server: Server, security: str) -> None:
    backend = EmailBackend(**server.options(security))
    batch = mails(3)
    assert [backend.send_messages([message]) for message in batch] == [1, 1, 1]
    assert server.taken() == each_once(batch)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_both_mechanisms_log_in(server: Server, security: str, mechanism: str) -> None:
    options = server.options(security, auth_mechanism=mechanism)
    assert EmailBackend(**options).send_messages([mail()]) == 1
    assert server.taken() == {"bob@example.org": 1}


def test_a_wrong_token_sends_nothing(server: Server, security: str) -> None:
    options = server.options(security, api_token="lm_wrong")
    with pytest.raises(AuthenticationFailed, match="535"):
        EmailBackend(**options).send_messages([mail()])
    assert server.taken() == {}


def test_a_list_of_fifty_arrives(server: Server, security: str) -> None:
    batch = mails(50)
    assert EmailBackend(**server.options(security)).send_messages(batch) == 50
    assert server.taken() == each_once(batch)


def test_a_list_over_four_connections_arrives(server: Server, security: str) -> None:
    batch = mails(50)
    options = server.options(security, batch_connections=4, pool={"max_size": 4})
    assert EmailBackend(**options).send_messages(batch) == 50
    assert server.taken() == each_once(batch)
    assert server.logged(server.connected) <= 4


def test_a_list_in_chunks_arrives_whether_they_are_offered_or_not(
    server: Server, security: str
) -> None:
    batch = mails(50)
    options = server.options(security, chunking=True)
    assert EmailBackend(**options).send_messages(batch) == 50
    assert server.taken() == each_once(batch)


def test_a_list_without_pipelining_arrives(server: Server, security: str) -> None:
    batch = mails(50)
    options = server.options(security, pipelining=False)
    assert EmailBackend(**options).send_messages(batch) == 50
    assert server.taken() == each_once(batch)


def test_exim_gets_a_list_in_chunks(security: str) -> None:
    with Exim() as server:
        options = server.options(security, chunking=True)
        assert EmailBackend(**options).send_messages(mails(50)) == 50
        assert server.logged(r" <= .* K ") == 50


def test_what_haraka_minds_is_not_repeated(security: str) -> None:
    with Haraka() as server:
        backend = EmailBackend(**server.options(security, batch_connections=1))
        assert backend.send_messages(mails(50)) == 50
        minded = server.logged("pipelined after end of DATA")
        assert minded <= 1
        assert backend.send_messages(mails(50)) == 50
        assert server.logged("pipelined after end of DATA") == minded
        assert set(server.taken().values()) == {2}


@pytest.mark.parametrize(
    "others",
    [{}, {"pipelining": False}, {"chunking": True}, {"batch_connections": 4}],
    ids=["defaults", "no pipelining", "chunks", "four connections"],
)
def test_refusals_cost_only_those_who_are_refused(
    server: Server, security: str, others: dict[str, Any]
) -> None:
    # More than twenty refusals: Postfix hangs up then.
    batch = [refusable(number) for number in range(50)]
    backend = EmailBackend(**server.options(security, **others))

    with pytest.raises((RecipientsRefused, SenderRefused)):
        backend.send_messages(batch)

    answers = [
        {
            who: (each.status, (each.code or 0) // 100)
            for who, each in found.recipients.items()
        }
        for found in map(result, batch)
    ]
    assert answers == [expected(number) for number in range(50)]
    assert server.taken() == {
        who: 1
        for answer in answers
        for who, (status, _) in answer.items()
        if status == "queued"
    }


def refusable(number: int) -> EmailMessage:
    """Return a message that is refused in none, in one or in all of its parts."""
    message = mail(*expected(number))
    if number % 5 == 4:
        message.from_email = "banned@example.org"
    return message


def expected(number: int) -> dict[str, tuple[str, int]]:
    """Return the status and the first digit of the reply for each recipient."""
    good = {f"{number}@example.org": ("queued", 2)}
    nobody = {f"nobody{number}@example.org": ("rejected", 5)}
    later = {f"later{number}@example.org": ("failed", 4)}
    banned = {f"{number}@example.org": ("rejected", 5)}
    return [good, nobody, {**nobody, **good, **later}, later, banned][number % 5]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_limit_of_connections_below_that_of_the_pool_costs_no_mail(
    kind: type[Server], security: str
) -> None:
    batch = mails(40)
    with kind(max_connections=3) as server, ThreadPoolExecutor(8) as threads:
        backend = EmailBackend(**server.options(security, pool={"max_size": 4}))

        def send_each(part: Sequence[EmailMessage]) -> None:
            for message in part:
                with suppress(LettermintError):
                    backend.send_messages([message])

        list(threads.map(send_each, [batch[lane::8] for lane in range(8)]))
        assert outcomes(batch) == {"SENT": 40}
        assert server.taken() == each_once(batch)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_limit_of_connections_below_those_of_a_list_costs_no_mail(
    kind: type[Server], security: str
) -> None:
    batch = mails(50)
    with kind(max_connections=3) as server:
        options = server.options(security, batch_connections=4)
        assert EmailBackend(**options).send_messages(batch) == 50
        assert server.taken() == each_once(batch)


@pytest.mark.parametrize("kind", [Exim, Haraka])
def test_a_limit_of_mails_on_a_connection_costs_no_mail(
    kind: type[Server], security: str
) -> None:
    batch = mails(65)
    with kind(max_mails=10) as server:
        backend = EmailBackend(**server.options(security))
        for messages in [batch[:50], *([message] for message in batch[50:])]:
            with suppress(LettermintError):
                backend.send_messages(messages)
        assert outcomes(batch) == {"SENT": 65}
        assert server.taken() == each_once(batch)
        # Seven would do.
        assert server.logged(server.connected) < 20


@pytest.mark.slow
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("kind", SERVERS)
def test_a_restart_within_a_list_loses_and_doubles_nothing(
    kind: type[Server], security: str, connections: int
) -> None:
    batch = mails(300)
    with kind() as server, ThreadPoolExecutor(1) as threads:
        options = server.options(security, batch_connections=connections)
        sending = threads.submit(EmailBackend(**options).send_messages, batch)
        server.wait_for(lambda: server.logged(server.accepted) >= 50)
        until = time.monotonic() + RESTART
        server.stop()
        time.sleep(until - time.monotonic())
        server.start()
        error = sending.exception()

        assert error is None or isinstance(error, DeliveryUnknown)
        found = outcomes(batch)
        assert found["NOT_SENT"] == 0
        # Those whose reply was lost on the way, at most one for each connection.
        assert found["UNKNOWN"] <= connections
        check(server, batch)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_restart_among_single_mails_leaves_no_doubt(
    kind: type[Server], security: str
) -> None:
    batch = mails(240)
    started = threading.Event()

    def send_each(part: Sequence[EmailMessage]) -> None:
        for message in part:
            # Stops all threads at the same point, so that mails are left for afterwards.
            if message is part[20]:
                started.wait(30)
            with suppress(LettermintError):
                backend.send_messages([message])

    with kind() as server, ThreadPoolExecutor(8) as threads:
        backend = EmailBackend(**server.options(security))
        sending = [threads.submit(send_each, batch[lane::8]) for lane in range(8)]
        server.wait_for(lambda: server.logged(server.accepted) >= 60)
        server.stop()
        server.start()
        started.set()
        for each in sending:
            each.result()

        # At most the message that each thread was sending when it happened.
        assert outcomes(batch)["UNKNOWN"] <= 8
        check(server, batch)
        failed = [each for each in batch if result(each).outcome is Outcome.NOT_SENT]
        assert backend.send_messages(failed) == len(failed)
        check(server, batch)


@pytest.mark.parametrize("kind", SERVERS)
def test_parked_connections_that_a_restart_has_closed_are_replaced(
    kind: type[Server], security: str
) -> None:
    batch = mails(2)
    with kind() as server:
        backend = EmailBackend(**server.options(security))
        assert backend.send_messages(batch[:1]) == 1
        server.stop()
        server.start()
        assert backend.send_messages(batch[1:]) == 1
        assert server.taken() == each_once(batch)


def test_a_single_mail_waits_for_a_server_that_is_starting(security: str) -> None:
    # Exim, as it is up in no time: the pause is all that the mail has to wait.
    with Exim() as server, ThreadPoolExecutor(1) as threads:
        server.stop()
        backend = EmailBackend(**server.options(security))
        sending = threads.submit(backend.send_messages, [mail()])
        time.sleep(0.8)
        server.start()
        assert sending.result() == 1
        assert server.taken() == {"bob@example.org": 1}
