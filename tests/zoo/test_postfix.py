"""What Postfix has and the other servers of the zoo have not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import (
    LettermintInvalidMessage,
    MessageRefused,
    RecipientsRefused,
    SenderRefused,
)
from django_lettermint.results import Outcome, Phase
from tests.sending import mail, mails, result
from tests.zoo.counting import each_once
from tests.zoo.postfix import RECIPIENT_LIMIT, SIZE_LIMIT, Postfix

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

pytestmark = [pytest.mark.external, pytest.mark.zoo]


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


@pytest.mark.parametrize("service", Postfix.services)
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


@pytest.mark.parametrize(
    ("options", "verb"),
    [({}, "data"), ({"chunking": True}, "bdat"), ({"service": "bare"}, "data")],
)
def test_a_batch_takes_one_connection(
    postfix: Postfix, options: dict[str, Any], verb: str
) -> None:
    batch = mails(100)
    assert send(postfix, *batch, batch_connections=1, **options) == 100
    pool.close_pools()
    assert postfix.taken() == each_once(batch)
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
    assert postfix.taken() == {"jürgen@example.org": 1}


@pytest.mark.parametrize("options", [{}, {"service": "bare"}, {"chunking": True}])
def test_refused_recipients_do_not_hold_up_the_others(
    postfix: Postfix, options: dict[str, Any]
) -> None:
    message = mail("bob@example.org", "nobody@example.org", "later@example.org")
    assert send(postfix, message, **options) == 1

    assert postfix.taken() == {"bob@example.org": 1}
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
    assert postfix.taken() == each_once(good)
    assert result(banned).phase is Phase.MAIL
    assert (
        "Relay access denied" in result(foreign).recipients["someone@example.net"].text
    )
    assert postfix.logged(postfix.connected) == 1


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
    assert postfix.taken() == {"small@example.org": 1}
    assert postfix.logged("exceeds") == 0


def test_a_size_that_the_server_kept_secret_is_its_own_to_refuse(
    postfix: Postfix,
) -> None:
    large = mail()
    large.body = "x\n" * SIZE_LIMIT
    with pytest.raises(MessageRefused, match="552"):
        send(postfix, large, mail("small@example.org"), service="bare")
    assert result(large).outcome is Outcome.NOT_SENT
    assert postfix.taken() == {"small@example.org": 1}


def test_recipients_over_the_servers_limit_get_a_further_transaction(
    postfix: Postfix,
) -> None:
    message = mail(*(f"{number}@example.org" for number in range(RECIPIENT_LIMIT + 10)))
    assert send(postfix, message, service="bare") == 1
    assert postfix.taken() == each_once([message])
    assert postfix.logged(postfix.accepted) == 2


@pytest.mark.slow
def test_a_thousand_mails_over_the_pool_arrive_once_each(postfix: Postfix) -> None:
    batch = mails(1000)
    backend = EmailBackend(**postfix.options(pool={"max_size": 4}))
    with ThreadPoolExecutor(8) as threads:
        chunks = [batch[start : start + 10] for start in range(0, 1000, 10)]
        assert sum(threads.map(backend.send_messages, chunks)) == 1000
    assert postfix.taken() == each_once(batch)
    assert len({each.queue_id for each in postfix.delivered()}) == 1000
    # 4 at once, each for 100 messages, and none wasted.
    assert 10 <= postfix.logged(postfix.connected) <= 14
