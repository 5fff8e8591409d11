"""How each message ends: result, status, signals and log, exactly once."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from anymail.exceptions import AnymailCancelSend, AnymailError
from anymail.signals import post_send, pre_send
from django.core.mail import EmailMessage

from django_lettermint import exceptions
from django_lettermint.backend import EmailBackend
from django_lettermint.results import Outcome, Phase
from django_lettermint.signals import message_failed, message_sent
from tests.deadends import refused_port
from tests.faultserver import FaultServer, On, reply
from tests.listening import listening, names, receiver
from tests.sending import message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.dispatch import Signal

    from django_lettermint.testing import Relay

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


def send(options: dict[str, Any], *messages: EmailMessage, **more: Any) -> Any:
    """Send messages; return the number sent, or the error."""
    try:
        return EmailBackend(**options, **more).send_messages(list(messages))
    except AnymailError as error:
        return error


def away(port: int) -> dict[str, Any]:
    """Return the options for a port of this machine at which nothing listens."""
    host = {"host": "127.0.0.1", "port": port, "security": "tls"}
    return {"api_token": "t", "retries": 0, **host}


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return our lines of at least this level; the relay of a test has a log, too."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "django_lettermint" and record.levelno >= level
    ]


# -- Result, status and signals --------------------------------------------------------


ANN, BOB = "ann@example.com", "bob@example.com"
DELIVERED, FAILED = ["post_send", "message_sent"], ["post_send", "message_failed"]
#: To whom it is sent (the relay refuses Bob), how it ends, and the signals that fire: as
#: in Anymail, post_send once the relay has answered for the recipients.
ENDS: dict[str, tuple[list[str], Outcome, Phase, Any, list[str]]] = {
    "sent": ([ANN], SENT, Phase.DONE, {"queued"}, DELIVERED),
    "sent to some": ([ANN, BOB], SENT, Phase.DONE, {"queued", "rejected"}, DELIVERED),
    "refused by all": ([BOB], NOT_SENT, Phase.RCPT, {"rejected"}, FAILED),
    "lost": ([ANN], UNKNOWN, Phase.COMMIT, {"unknown"}, FAILED),
    "invalid": (["no"], NOT_SENT, Phase.MESSAGE, None, ["message_failed"]),
    "without recipients": ([], NOT_SENT, Phase.NO_RECIPIENTS, None, []),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end_has_a_result_a_status_and_one_signal(relay: Relay, end: str) -> None:
    to, outcome, phase, status, signals = ENDS[end]
    relay.refuse(BOB)
    if end == "lost":
        relay.drop_final_replies()
    mail: Any = EmailMessage("Hi", "Hello", "shop@example.com", to)
    with listening() as heard:
        returned = send(relay.options(idempotency=False, retries=0), mail)
    result = mail.anymail_status.esp_response
    assert (result.outcome, result.phase) == (outcome, phase)
    assert mail.anymail_status.status == status
    assert names(heard) == signals
    for name, arguments in heard:
        assert arguments["sender"] is EmailBackend
        assert arguments["message"] is mail
        assert arguments.get("result", result) is result
        assert arguments.get("status", mail.anymail_status) is mail.anymail_status
        if name == "message_failed":
            assert arguments["error"] is returned
            assert returned.results == (returned.result,) == (result,)


def test_the_status_is_complete_when_post_send_fires(relay: Relay) -> None:
    then = []

    def note(**arguments: Any) -> None:
        then.append((arguments["status"].status, arguments["esp_name"]))

    with receiver(post_send, note):
        assert send(relay.options(), message()) == 1
    assert then == [({"queued"}, "Lettermint")]


def test_a_message_that_found_no_connection_fires_no_post_send(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mail = message()
    with refused_port() as port, listening() as heard:
        error = send(away(port) | {"retries": 2}, mail)
    assert names(heard) == ["message_failed"]
    assert isinstance(error, exceptions.ConnectFailed)
    assert mail.anymail_status.status == {"failed"}
    [line] = logged(caplog, logging.ERROR)
    assert f"not_sent at connect on 127.0.0.1:{port} (ConnectFailed, code None" in line
    assert "attempts: 3)" in line
    assert "Connection refused" in line


def test_the_result_of_a_sent_message_says_how_it_went(relay: Relay) -> None:
    mail = message("Ann <ann@straße.de>", cc=["bob@example.com"])
    relay.refuse("bob@example.com", 550, "5.1.1 bob@example.com who?")
    send(relay.options(), mail)
    status = mail.anymail_status
    result = status.esp_response
    # The status names recipients as the caller did, the result as SMTP does.
    assert list(status.recipients) == ["ann@straße.de", "bob@example.com"]
    assert list(result.recipients) == ["ann@xn--strae-oqa.de", "bob@example.com"]
    refused = result.recipients["bob@example.com"]
    assert (refused.code, refused.enhanced_code) == (550, "5.1.1")
    assert refused.text == "5.1.1 bob@example.com who?"
    assert (result.code, result.attempts, result.connection_reused) == (250, 1, False)
    assert 0 < result.elapsed < 60
    [received] = relay.messages
    assert status.message_id == received.metadata["django_message_id"]
    assert result.message_id == status.message_id
    assert result.idempotency_key == received.idempotency_key
    send(relay.options(), again := message())
    assert again.anymail_status.esp_response.connection_reused


def test_one_message_to_many_fires_one_signal(relay: Relay) -> None:
    relay.refuse("bob@example.com")
    mail = message("ann@example.com", "bob@example.com", "eve@example.com")
    mail.merge_metadata = {"ann@example.com": {"n": 1}}
    with listening() as heard:
        assert send(relay.options(), mail) == 1
    assert names(heard) == ["post_send", "message_sent"]
    recipients = mail.anymail_status.recipients.values()
    assert [each.status for each in recipients] == ["queued", "rejected", "queued"]
    ids = [each.message_id for each in recipients]
    assert len(set(ids)) == 3
    assert mail.anymail_status.esp_response.message_id == ids[0]
    received = [each.metadata["django_message_id"] for each in relay.messages]
    assert received == [ids[0], ids[2]]


# -- Receivers -------------------------------------------------------------------------


def test_a_cancelled_message_fires_nothing(relay: Relay) -> None:
    def cancel(**_: Any) -> None:
        raise AnymailCancelSend

    mail = message()
    with receiver(pre_send, cancel), listening() as heard:
        assert send(relay.options(), mail) == 0
    assert heard == []
    assert mail.anymail_status.status is None
    assert mail.anymail_status.esp_response.phase is Phase.CANCELLED
    assert relay.statistics.connections == 0


@pytest.mark.parametrize(
    "signal", [post_send, message_sent, message_failed], ids=["post", "sent", "failed"]
)
def test_a_receiver_that_raises_is_logged_and_changes_nothing(
    relay: Relay, caplog: pytest.LogCaptureFixture, signal: Signal
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("a receiver's own problem")

    relay.refuse("bob@example.com")
    with receiver(signal, fail), listening() as heard:
        error = send(relay.options(), message(), message("bob@example.com"))
    assert isinstance(error, exceptions.RecipientsRefused)
    assert names(heard) == ["post_send", "message_sent", "post_send", "message_failed"]
    assert "a receiver's own problem" in caplog.text


def test_receivers_find_the_connection_free(relay: Relay) -> None:
    options = relay.options(pool={"max_size": 1, "timeout": 5})
    follow_ups = []

    def follow_up(**arguments: Any) -> None:
        if arguments["message"].subject == "Hi":
            mail = message("follow-up@example.com")
            mail.subject = "Follow-up"
            follow_ups.append(send(options, mail))

    relay.refuse("bob@example.com")
    with receiver(message_sent, follow_up), receiver(message_failed, follow_up):
        send(options, message(), message("bob@example.com"), message())
    assert follow_ups == [1, 1, 1]
    assert relay.statistics.connections == 1


def test_a_receiver_that_always_sends_on_failure_comes_to_an_end() -> None:
    depths: list[int] = []

    def complain(**_: Any) -> None:
        depths.append(len(depths))
        send(options, message())

    with refused_port() as port, receiver(message_failed, complain):
        options = away(port)
        send(options, message())
    assert depths == [0, 1]


# -- The log ---------------------------------------------------------------------------


def test_the_log_has_addresses_at_debug_only(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    relay.refuse("bob@example.com", 550, "5.1.1 bob@example.com who?")
    relay.refuse("bad@example.com", 550, "5.1.1 no bad@example.com", "MAIL")
    send(
        relay.options(),
        message(),
        message("ann@example.com", "bob@example.com"),
        message("bob@example.com"),
        message("broken@@example.com"),
        EmailMessage("Hi", "Hello", "bad@example.com", ["ann@example.com"]),
    )
    loud = logged(caplog, logging.INFO)
    assert len(loud) == 4
    assert "1 of 2 recipients were refused" in loud[0]
    assert len(logged(caplog, logging.ERROR)) == 3
    assert not any("@" in line for line in loud)
    quiet = " ".join(logged(caplog, logging.DEBUG))
    for address in ("bob@example.com", "broken@@example.com", "bad@example.com"):
        assert address in quiet


@pytest.mark.parametrize(
    ("options", "script", "words", "reason"),
    [
        ({"cert": "expired"}, [], "at tls on", "certificate has expired"),
        ({}, [On("auth", do=reply(535, "5.7.8 no"))], "code 535", "535 at AUTH PLAIN"),
        ({}, [On("rcpt", do=reply(550, "5.1.1 who?"))], "at rcpt on", "attempts: 1)"),
    ],
    ids=["certificate", "login", "recipient"],
)
def test_a_failure_is_logged_with_host_port_step_and_the_reason_of_a_connection(
    options: dict[str, Any],
    script: list[On],
    words: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FaultServer(script, **options) as server:
        error = send(server.options(), message())
        [line] = logged(caplog, logging.ERROR)
    result = error.result
    assert line.startswith(
        f"Message {result.message_id}: not_sent at {result.phase} "
        f"on 127.0.0.1:{server.port} ({type(error).__name__}, code {result.code}, "
        "attempts: 1)"
    )
    assert words in line
    assert reason in line
    assert "who?" not in line


@contextmanager
def handler(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger("django_lettermint")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class Mailing(logging.Handler):
    """Reports errors by mail, as Django's AdminEmailHandler does."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(logging.ERROR)
        self.options = options
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())
        assert len(self.records) < 10, "endless"
        send(self.options, message("admin@example.com"))


def test_errors_that_are_reported_by_mail_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with refused_port() as port:
        mailing = Mailing(away(port))
        with handler(mailing), listening() as heard:
            error = send(away(port), message())
    # That the report could not be mailed is logged at DEBUG, which is not mailed.
    assert isinstance(error, exceptions.ConnectFailed)
    assert len(mailing.records) == 1
    assert names(heard) == ["message_failed"] * 2
    assert heard[0][1]["message"].to == ["admin@example.com"]
    assert heard[1][1]["message"].to == ["ann@example.com"]
    levels = [
        each.levelno for each in caplog.records if "not_sent" in each.getMessage()
    ]
    assert sorted(levels) == [logging.DEBUG, logging.ERROR]


def test_a_log_handler_that_raises_changes_nothing(relay: Relay) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the log is full")

    relay.refuse("bob@example.com")
    with handler(Broken()), listening() as heard:
        error = send(relay.options(), message("bob@example.com"), message())
    assert isinstance(error, exceptions.RecipientsRefused)
    assert names(heard)[-1] == "message_sent"


def test_failing_silently_is_silent_to_the_caller_alone(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    relay.refuse("bob@example.com")
    mail = message("bob@example.com")
    with listening() as heard:
        sent = send(relay.options(), mail, message(), fail_silently=True)
    assert sent == 1
    assert names(heard) == ["post_send", "message_failed", "post_send", "message_sent"]
    assert "not_sent at rcpt" in caplog.text
    assert mail.anymail_status.status == {"rejected"}
