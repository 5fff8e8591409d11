"""The backend against a server that nobody here wrote."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import (
    AuthenticationFailed,
    DeliveryUnknown,
    LettermintError,
    LettermintInvalidMessage,
    MessageRefused,
    RecipientsRefused,
    SenderRefused,
)
from django_lettermint.results import Outcome, Phase
from tests.zoo.postfix import SERVICES, Postfix
from tests.zoo.postfix_config import RECIPIENT_LIMIT, SIZE_LIMIT
from tests.sending import mail, mails, result

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

pytestmark = pytest.mark.external

QUEUED = r"qmgr: \w+: from="


@pytest.fixture(scope="module")
def running() -> Iterator[Postfix]:
    with Postfix() as postfix:
        yield postfix


@pytest.fixture
def postfix(running: Postfix) -> Postfix:
    running.forget()
    return running


def send(postfix: Postfix, *messages: EmailMessage, **options: Any) -> int:
    return EmailBackend(**postfix.options(**options)).send_messages(messages)


def recipients(postfix: Postfix) -> Counter[str]:
    """Count the mails in the maildir by recipient."""
    return Counter(each.recipient for each in postfix.delivered())


def each_once(messages: Sequence[EmailMessage]) -> Counter[str]:
    return Counter(who for message in messages for who in message.to)


@pytest.mark.parametrize("service", SERVICES)
def test_a_mail_arrives_as_it_was_written(postfix: Postfix, service: str) -> None:
    message = mail("bob@example.org", subject="Grüße", cc=["carol@example.org"])
    message.body = "Bücher, 本,\n.\n..\n.hidden dots\nand a long line: " + "x" * 2000
    message.attach("data.bin", bytes(range(256)) * 1000, "application/octet-stream")

    assert send(postfix, message, service=service) == 1

    bob, carol = sorted(postfix.delivered(), key=lambda each: each.recipient)
    assert (bob.recipient, carol.recipient) == ("bob@example.org", "carol@example.org")
    assert bob.queue_id == carol.queue_id
    assert bob.mime["Subject"] == "Grüße"
    text, attachment = bob.mime.iter_parts()
    assert text.get_content().rstrip("\n") == message.body
    assert attachment.get_content() == bytes(range(256)) * 1000
    assert result(message).outcome is Outcome.SENT
    assert bob.queue_id in result(message).text


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("service", ["tls", "starttls"])
def test_both_mechanisms_log_in(postfix: Postfix, service: str, mechanism: str) -> None:
    send(postfix, mail(), service=service, auth_mechanism=mechanism)
    assert recipients(postfix) == {"bob@example.org": 1}
    assert postfix.logged(f"sasl_method={mechanism}, sasl_username=lettermint@") == 1


def test_a_wrong_token_sends_nothing(postfix: Postfix) -> None:
    with pytest.raises(AuthenticationFailed, match="535"):
        send(postfix, mail(), api_token="lm_wrong")
    assert recipients(postfix) == {}


@pytest.mark.parametrize(
    ("options", "verb"),
    [({}, "data"), ({"chunking": True}, "bdat"), ({"service": "bare"}, "data")],
)
def test_a_batch_takes_one_connection(
    postfix: Postfix, options: dict[str, Any], verb: str
) -> None:
    batch = mails(100)
    assert send(postfix, *batch, **options) == 100
    pool.close_pools()
    assert recipients(postfix) == each_once(batch)
    # All on one connection, which says so once it has ended.
    postfix.wait_for(
        lambda: postfix.logged(rf" mail=100 rcpt=100 {verb}=100 quit=1 ") == 1
    )


def test_eight_bit_text_goes_as_it_is_where_it_may(postfix: Postfix) -> None:
    for service in ("tls", "bare"):
        message = mail(f"{service}@example.org")
        message.body = "Käse"
        send(postfix, message, service=service)

    encodings = {
        each.recipient: each.mime["Content-Transfer-Encoding"]
        for each in postfix.delivered()
    }
    assert encodings["tls@example.org"] == "8bit"
    assert encodings["bare@example.org"] in ("base64", "quoted-printable")
    assert {each.mime.get_content().strip() for each in postfix.delivered()} == {"Käse"}


def test_a_non_ascii_address_needs_smtputf8(postfix: Postfix) -> None:
    assert send(postfix, mail("jürgen@example.org")) == 1
    with pytest.raises(LettermintInvalidMessage, match="SMTPUTF8"):
        send(postfix, mail("jürgen@example.org"), service="bare")
    assert recipients(postfix) == {"jürgen@example.org": 1}


@pytest.mark.parametrize("options", [{}, {"service": "bare"}, {"chunking": True}])
def test_refused_recipients_do_not_hold_up_the_others(
    postfix: Postfix, options: dict[str, Any]
) -> None:
    message = mail("bob@example.org", "nobody@example.org", "later@example.org")
    assert send(postfix, message, **options) == 1

    assert recipients(postfix) == {"bob@example.org": 1}
    answers = result(message).recipients
    assert {who: (each.status, each.code) for who, each in answers.items()} == {
        "bob@example.org": ("queued", 250),
        "nobody@example.org": ("rejected", 550),
        "later@example.org": ("failed", 450),
    }


@pytest.mark.parametrize("options", [{}, {"service": "bare"}, {"chunking": True}])
def test_a_refused_mail_in_a_batch_harms_no_other(
    postfix: Postfix, options: dict[str, Any]
) -> None:
    nobody, foreign = mail("nobody@example.org"), mail("someone@example.net")
    banned = mail()
    banned.from_email = "banned@example.org"
    good = [mail(f"good{number}@example.org") for number in range(4)]
    batch = [good[0], nobody, good[1], banned, good[2], foreign, good[3]]

    with pytest.raises(RecipientsRefused) as caught:
        send(postfix, *batch, **options)

    assert [each.outcome.name for each in caught.value.results] == [
        *("SENT", "NOT_SENT", "SENT", "NOT_SENT", "SENT", "NOT_SENT", "SENT")
    ]
    assert recipients(postfix) == each_once(good)
    assert result(banned).phase is Phase.MAIL
    assert (
        "Relay access denied" in result(foreign).recipients["someone@example.net"].text
    )
    assert postfix.logged("smtpd: connect from") == 1


def test_a_refused_sender_is_named(postfix: Postfix) -> None:
    message = mail()
    message.from_email = "banned@example.org"
    with pytest.raises(SenderRefused, match="Access denied"):
        send(postfix, message)


def test_a_mail_over_the_servers_size_is_refused_at_once(postfix: Postfix) -> None:
    large = mail()
    large.body = "x\n" * SIZE_LIMIT
    with pytest.raises(LettermintInvalidMessage, match=str(SIZE_LIMIT)):
        send(postfix, large, mail("small@example.org"))
    assert recipients(postfix) == {"small@example.org": 1}
    assert postfix.logged("exceeds") == 0


def test_a_size_that_the_server_kept_secret_is_its_own_to_refuse(
    postfix: Postfix,
) -> None:
    large = mail()
    large.body = "x\n" * SIZE_LIMIT
    with pytest.raises(MessageRefused, match="552"):
        send(postfix, large, mail("small@example.org"), service="bare")
    assert result(large).outcome is Outcome.NOT_SENT
    assert recipients(postfix) == {"small@example.org": 1}


def test_recipients_over_the_servers_limit_get_a_further_transaction(
    postfix: Postfix,
) -> None:
    message = mail(*(f"{number}@example.org" for number in range(RECIPIENT_LIMIT + 10)))
    assert send(postfix, message, service="bare") == 1
    assert recipients(postfix) == each_once([message])
    assert postfix.logged(QUEUED) == 2


@pytest.mark.slow
def test_a_thousand_mails_over_the_pool_arrive_once_each(postfix: Postfix) -> None:
    batch = mails(1000)
    backend = EmailBackend(**postfix.options())
    with ThreadPoolExecutor(8) as threads:
        chunks = [batch[start : start + 10] for start in range(0, 1000, 10)]
        assert sum(threads.map(backend.send_messages, chunks)) == 1000
    assert recipients(postfix) == each_once(batch)
    assert len({each.queue_id for each in postfix.delivered()}) == 1000
    # 4 at once, each for 100 messages, and none wasted.
    assert 10 <= postfix.logged("smtpd: connect from") <= 14


@pytest.mark.slow
def test_a_stop_and_start_midway_loses_and_doubles_nothing(postfix: Postfix) -> None:
    batch = mails(600)
    backend = EmailBackend(**postfix.options())
    started = threading.Event()

    def send_each(part: Sequence[EmailMessage]) -> None:
        for message in part:
            # Stops them all at the same point, so that mails are left for afterwards.
            if message is part[50]:
                started.wait(30)
            with contextlib.suppress(LettermintError):
                backend.send_messages([message])

    with ThreadPoolExecutor(8) as threads:
        sending = [threads.submit(send_each, batch[lane::8]) for lane in range(8)]
        postfix.wait_for(lambda: postfix.logged(QUEUED) >= 150)
        postfix.stop()
        postfix.start()
        started.set()
        for each in sending:
            each.result()

    outcomes = Counter(result(message).outcome for message in batch)
    assert outcomes[Outcome.SENT] >= 350
    # At most the message that each thread was sending when it happened.
    assert outcomes[Outcome.UNKNOWN] <= 8
    check(postfix, batch)
    failed = [each for each in batch if result(each).outcome is Outcome.NOT_SENT]
    assert backend.send_messages(failed) == len(failed)
    check(postfix, batch)


@pytest.mark.slow
def test_a_batch_outlives_a_stop_and_start(postfix: Postfix) -> None:
    batch = mails(300)
    backend = EmailBackend(**postfix.options(retries=10))
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(backend.send_messages, batch)
        postfix.wait_for(lambda: postfix.logged(QUEUED) >= 100)
        postfix.stop()
        postfix.start()
        error = sending.exception()
    assert error is None or isinstance(error, DeliveryUnknown)
    outcomes = Counter(result(message).outcome for message in batch)
    assert outcomes[Outcome.NOT_SENT] == 0
    assert outcomes[Outcome.UNKNOWN] <= 1
    check(postfix, batch)


def check(postfix: Postfix, batch: Sequence[EmailMessage]) -> None:
    """Compare what each message is said to have come to with what Postfix has of it."""
    # By queue id: Postfix stopped in mid-delivery may itself deliver one message twice.
    taken = Counter(
        who for who, _ in {(m.recipient, m.queue_id) for m in postfix.delivered()}
    )
    for message in batch:
        [who] = message.to
        possible = {
            Outcome.SENT: {1},
            Outcome.NOT_SENT: {0},
            Outcome.UNKNOWN: {0, 1},
        }[result(message).outcome]
        assert taken[who] in possible, (who, result(message))
