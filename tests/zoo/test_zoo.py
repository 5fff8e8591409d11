"""Each mail arrives once at real servers that refuse, limit, hang up and restart."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
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
from tests.zoo.exim import Exim
from tests.zoo.haraka import Haraka
from tests.zoo.postfix import RECIPIENT_LIMIT, SIZE_LIMIT, Postfix

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from tests.zoo.server import Server

pytestmark = [pytest.mark.external, pytest.mark.zoo]

#: Seconds without a server, as during an upgrade.
RESTART = 1.5

SERVERS = [Exim, Haraka, Postfix]
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no pipelining": {"pipelining": False},
    "chunks, if offered": {"chunking": True},
    "four connections": {"batch_connections": 4},
}


#: Copies that a recipient may have.
COPIES = {Outcome.SENT: {1}, Outcome.NOT_SENT: {0}, Outcome.UNKNOWN: {0, 1}}


def each_once(messages: Sequence[EmailMessage]) -> Counter[str]:
    """Return what `taken()` is if each message arrived once for each recipient."""
    return Counter(who for message in messages for who in message.to)


def outcomes(messages: Sequence[EmailMessage]) -> Counter[str]:
    """Count the messages by their outcome."""
    return Counter(result(message).outcome.name for message in messages)


def check(server: Server, messages: Sequence[EmailMessage]) -> None:
    """Compare the outcome of each message with what the server has of it."""
    taken = server.taken()
    for message in messages:
        [who] = message.to
        assert taken[who] in COPIES[result(message).outcome], (who, result(message))


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


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_single_mails_arrive(server: Server, security: str, mechanism: str) -> None:
    options = server.options(security, auth_mechanism=mechanism)
    backend = EmailBackend(**options)
    batch = mails(3)
    assert [backend.send_messages([message]) for message in batch] == [1, 1, 1]
    assert server.taken() == each_once(batch)


def test_a_wrong_token_sends_nothing(server: Server) -> None:
    with pytest.raises(AuthenticationFailed, match="535"):
        EmailBackend(**server.options(api_token="lm_wrong")).send_messages([mail()])
    assert server.taken() == {}


@pytest.mark.parametrize("others", VARIANTS.values(), ids=VARIANTS)
def test_a_list_arrives(server: Server, security: str, others: dict[str, Any]) -> None:
    batch = mails(50)
    assert EmailBackend(**server.options(security, **others)).send_messages(batch) == 50
    assert server.taken() == each_once(batch)
    assert server.logged(server.connected) <= 10


def test_exim_gets_a_list_in_chunks(security: str) -> None:
    with Exim() as server:
        options = server.options(security, chunking=True)
        assert EmailBackend(**options).send_messages(mails(50)) == 50
        assert server.logged(r" <= .* K ") == 50


def test_pipelining_that_haraka_refuses_is_not_repeated(security: str) -> None:
    with Haraka() as server:
        backend = EmailBackend(**server.options(security, batch_connections=1))
        assert backend.send_messages(mails(50)) == 50
        refused = server.logged("pipelined after end of DATA")
        assert refused <= 1
        assert backend.send_messages(mails(50)) == 50
        assert server.logged("pipelined after end of DATA") == refused
        assert set(server.taken().values()) == {2}


@pytest.mark.parametrize("others", VARIANTS.values(), ids=VARIANTS)
def test_a_refusal_affects_only_the_message_or_recipient_it_is_about(
    server: Server, security: str, others: dict[str, Any]
) -> None:
    # After twenty refusals, Postfix hangs up.
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
    singles, batch = mails(40), mails(50)
    with kind(max_connections=3) as server, ThreadPoolExecutor(8) as threads:
        options = server.options(security, batch_connections=4, pool={"max_size": 4})
        backend = EmailBackend(**options)
        sent = threads.map(lambda one: backend.send_messages([one]), singles)
        assert sum(sent) == 40
        assert backend.send_messages(batch) == 50
        assert server.taken() == each_once(singles + batch)


@pytest.mark.parametrize("kind", [Exim, Haraka])
def test_a_limit_of_mails_on_a_connection_costs_no_mail(
    kind: type[Server], security: str
) -> None:
    batch = mails(65)
    with kind(max_mails=10) as server:
        backend = EmailBackend(**server.options(security))
        assert backend.send_messages(batch[:50]) == 50
        for message in batch[50:]:
            assert backend.send_messages([message]) == 1
        assert server.taken() == each_once(batch)
        # Seven suffice.
        assert server.logged(server.connected) < 20


@pytest.mark.slow
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("kind", SERVERS)
def test_a_restart_during_a_list_loses_and_duplicates_no_mail(
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
        # Replies that were lost, at most one for each connection.
        assert found["UNKNOWN"] <= connections
        check(server, batch)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_restart_among_single_mails_loses_and_duplicates_no_mail(
    kind: type[Server], security: str
) -> None:
    batch = mails(240)
    started = threading.Event()

    def send_each(part: Sequence[EmailMessage]) -> None:
        for message in part:
            # Hold every thread here, so that mails remain for after the restart.
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

        # At most the message that each thread was sending at the restart.
        assert outcomes(batch)["UNKNOWN"] <= 8
        check(server, batch)
        failed = [each for each in batch if result(each).outcome is Outcome.NOT_SENT]
        assert backend.send_messages(failed) == len(failed)
        check(server, batch)


@pytest.mark.parametrize("kind", SERVERS)
def test_idle_connections_closed_by_a_restart_are_replaced(
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


# -- what Postfix read -------------------------------------------------------------------


@pytest.mark.parametrize("service", Postfix.services)
def test_a_mail_arrives_as_it_was_written(service: str) -> None:
    message = mail("bob@example.org", subject="Grüße", cc=["carol@example.org"])
    message.body = "Bücher, 本,\n.\n..\n.hidden dots\nand a long line: " + "x" * 2000
    message.attach("data.bin", bytes(range(256)) * 1000, "application/octet-stream")
    with Postfix() as server:
        backend = EmailBackend(**server.options(service))
        assert backend.send_messages([message]) == 1
        bob, carol = sorted(server.delivered(), key=lambda each: each.recipient)

    assert (bob.recipient, carol.recipient) == ("bob@example.org", "carol@example.org")
    assert bob.queue_id == carol.queue_id
    assert bob.mime["Subject"] == "Grüße"
    text, attachment = bob.mime.iter_parts()
    assert text.get_content().rstrip("\n") == message.body
    assert attachment.get_content() == bytes(range(256)) * 1000
    assert result(message).outcome is Outcome.SENT
    assert bob.queue_id in result(message).text


@pytest.mark.parametrize(
    ("service", "chunking", "verb"),
    [("tls", False, "data"), ("tls", True, "bdat"), ("bare", False, "data")],
)
def test_a_batch_takes_one_connection(
    service: str, verb: str, *, chunking: bool
) -> None:
    batch = mails(100)
    with Postfix() as server:
        options = server.options(service, chunking=chunking, batch_connections=1)
        assert EmailBackend(**options).send_messages(batch) == 100
        pool.close_pools()
        assert server.taken() == each_once(batch)
        # Logged when the connection ends.
        counts = rf" mail=100 rcpt=100 {verb}=100 quit=1 "
        server.wait_for(lambda: server.logged(counts) == 1)


def test_what_a_server_cannot_take_is_refused_and_the_rest_arrives() -> None:
    large, foreign = mail(), mail("jürgen@example.org")
    large.body = "x\n" * SIZE_LIMIT
    many = mail(*(f"{number}@example.org" for number in range(RECIPIENT_LIMIT + 10)))
    batch = [large, foreign, many]
    with Postfix() as server:
        # Nothing is announced here: neither SIZE nor SMTPUTF8, nor its limit.
        options = server.options("bare", fail_silently=True, batch_connections=1)
        assert EmailBackend(**options).send_messages(batch) == 1
        assert server.taken() == each_once([many])
        assert server.logged(server.accepted) == 2

    assert "message file too big" in result(large).text
    assert [result(each).outcome.name for each in batch] == ["NOT_SENT"] * 2 + ["SENT"]
