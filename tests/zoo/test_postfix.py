"""What only Postfix can show: a maildir, few extensions, limits of size and recipients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import (
    LettermintInvalidMessage,
    MessageRefused,
    RecipientsRefused,
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
    # Logged when the connection ends.
    postfix.wait_for(
        lambda: postfix.logged(rf" mail=100 rcpt=100 {verb}=100 quit=1 ") == 1
    )


def test_text_is_sent_as_8bit_only_if_the_server_offers_it(postfix: Postfix) -> None:
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


def test_a_refused_message_keeps_the_reply_and_the_connection(postfix: Postfix) -> None:
    good, foreign, banned = mail(), mail("someone@example.net"), mail()
    banned.from_email = "banned@example.org"

    with pytest.raises(RecipientsRefused) as caught:
        send(postfix, foreign, banned, good)

    assert [each.phase for each in caught.value.results] == [
        *(Phase.RCPT, Phase.MAIL, Phase.DONE)
    ]
    answer = result(foreign).recipients["someone@example.net"]
    assert "Relay access denied" in answer.text
    assert "Access denied" in result(banned).text
    assert postfix.taken() == each_once([good])
    assert postfix.logged(postfix.connected) == 1


def test_a_mail_over_the_size_that_the_server_announces_is_not_sent(
    postfix: Postfix,
) -> None:
    large = mail()
    large.body = "x\n" * SIZE_LIMIT
    with pytest.raises(LettermintInvalidMessage, match=str(SIZE_LIMIT)):
        send(postfix, large, mail("small@example.org"))
    assert postfix.taken() == {"small@example.org": 1}
    assert postfix.logged("exceeds") == 0


def test_a_mail_over_a_size_that_the_server_does_not_announce_is_refused(
    postfix: Postfix,
) -> None:
    large = mail()
    large.body = "x\n" * SIZE_LIMIT
    with pytest.raises(MessageRefused, match="552"):
        send(postfix, large, mail("small@example.org"), service="bare")
    assert result(large).outcome is Outcome.NOT_SENT
    assert postfix.taken() == {"small@example.org": 1}


def test_recipients_over_the_servers_limit_get_another_transaction(
    postfix: Postfix,
) -> None:
    message = mail(*(f"{number}@example.org" for number in range(RECIPIENT_LIMIT + 10)))
    assert send(postfix, message, service="bare") == 1
    assert postfix.taken() == each_once([message])
    assert postfix.logged(postfix.accepted) == 2
