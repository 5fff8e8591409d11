"""How each message ends: result, status, signals and log, exactly once."""

from __future__ import annotations

import logging
import threading
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
from tests.faultserver import FaultServer, On, drop, reply
from tests.listening import listening, names, receiver
from tests.sending import message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.dispatch import Signal

    from django_lettermint.testing import Relay


def send(options: dict[str, Any], *messages: EmailMessage, **more: Any) -> Any:
    """Send messages; return the number sent, or the error."""
    try:
        return EmailBackend(**options, **more).send_messages(list(messages))
    except AnymailError as error:
        return error


def test_a_sent_message_fires_message_sent(relay: Relay) -> None:
    mail = message()
    with listening() as heard:
        assert send(relay.options(), mail) == 1
    assert names(heard) == ["post_send", "message_sent"]
    status, arguments = heard[0][1], heard[1][1]
    assert arguments["sender"] is status["sender"] is EmailBackend
    assert arguments["message"] is status["message"] is mail
    assert status["status"] is mail.anymail_status
    assert status["esp_name"] == "Lettermint"
    result = arguments["result"]
    assert result is mail.anymail_status.esp_response
    assert result.outcome is Outcome.SENT
    assert result.phase is Phase.DONE
    assert result.code == 250
    assert result.attempts == 1
    assert 0 < result.elapsed < 60
    assert not result.connection_reused


def test_the_status_names_recipients_as_the_caller_did(relay: Relay) -> None:
    mail = message("Ann <ann@straße.de>", cc=["bob@example.com"])
    send(relay.options(), mail)
    status = mail.anymail_status
    assert list(status.recipients) == ["ann@straße.de", "bob@example.com"]
    assert status.status == {"queued"}
    [received] = relay.messages
    assert status.message_id == received.metadata["django_message_id"]
    assert status.esp_response.message_id == status.message_id
    assert status.esp_response.idempotency_key == received.idempotency_key


def test_the_next_message_uses_the_connection_again(relay: Relay) -> None:
    first, second = message(), message()
    send(relay.options(), first)
    send(relay.options(), second)
    assert not first.anymail_status.esp_response.connection_reused
    assert second.anymail_status.esp_response.connection_reused


def test_a_message_that_all_refuse_fires_message_failed(
    relay: Relay,
) -> None:
    relay.refuse("ann@example.com")
    mail = message()
    with listening() as heard:
        error = send(relay.options(), mail)
    assert names(heard) == ["post_send", "message_failed"]
    assert isinstance(error, exceptions.RecipientsRefused)
    arguments = heard[1][1]
    assert arguments["error"] is error
    assert arguments["result"] is error.result is mail.anymail_status.esp_response
    assert error.results == (error.result,)
    assert mail.anymail_status.status == {"rejected"}


STATUSES = {
    250: "queued",
    450: "failed",
    501: "invalid",
    550: "rejected",
    553: "invalid",
}


@pytest.mark.parametrize("code", STATUSES)
def test_the_reply_to_a_recipient_becomes_its_status(relay: Relay, code: int) -> None:
    relay.refuse("bob@example.com", code, "4.2.1 so it is")
    if code == 250:
        relay.accept("bob@example.com")
    mail = message("ann@example.com", "bob@example.com")
    assert send(relay.options(), mail) == 1
    status = mail.anymail_status.recipients["bob@example.com"].status
    assert status == STATUSES[code]
    assert mail.anymail_status.recipients["ann@example.com"].status == "queued"


def test_a_partial_refusal_is_sent_and_warned_about(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    relay.refuse("bob@example.com", 550, "5.1.1 bob@example.com who?")
    mail = message("ann@example.com", "bob@example.com")
    with listening() as heard:
        assert send(relay.options(), mail) == 1
    assert names(heard) == ["post_send", "message_sent"]
    [record] = [each for each in caplog.records if each.levelno >= logging.INFO]
    assert record.levelno == logging.WARNING
    assert "1 of 2 recipients were refused" in record.getMessage()
    refused = heard[1][1]["result"].recipients["bob@example.com"]
    assert (refused.code, refused.enhanced_code) == (550, "5.1.1")
    assert refused.text == "5.1.1 bob@example.com who?"


def test_an_invalid_message_never_reached_the_provider(relay: Relay) -> None:
    mail = message("no address")
    with listening() as heard:
        error = send(relay.options(), mail)
    # Not post_send: Anymail sends that when the provider has answered.
    assert names(heard) == ["message_failed"]
    assert isinstance(error, exceptions.LettermintInvalidMessage)
    assert error.result
    assert error.result.phase is Phase.MESSAGE
    assert mail.anymail_status.status is None
    assert mail.anymail_status.message_id is None
    assert mail.anymail_status.esp_response is error.result
    assert relay.statistics.connections == 0


def test_a_relay_that_is_away_is_a_failure_to_connect() -> None:
    mail = message()
    with refused_port() as port, listening() as heard:
        error = send(
            {"api_token": "t", "host": "127.0.0.1", "port": port, "security": "tls"},
            mail,
            retries=0,
        )
    assert names(heard) == ["message_failed"]
    assert isinstance(error, exceptions.ConnectFailed)
    assert mail.anymail_status.status == {"failed"}
    assert mail.anymail_status.esp_response.phase is Phase.CONNECT


def test_a_lost_reply_leaves_the_recipients_unknown(relay: Relay) -> None:
    relay.drop_final_replies()
    mail = message()
    statuses = []

    def hear(**arguments: Any) -> None:
        statuses.append(set(arguments["status"].status))

    with listening() as heard, receiver(post_send, hear):
        error = send(relay.options(idempotency=False), mail)
    assert names(heard) == ["post_send", "message_failed"]
    assert statuses == [{"unknown"}]
    assert isinstance(error, exceptions.DeliveryUnknown)
    assert error.result
    assert error.result.outcome is Outcome.UNKNOWN
    assert error.envelope
    assert mail.anymail_status.recipients["ann@example.com"].status == "unknown"


def test_a_repeated_message_fires_one_signal(relay: Relay) -> None:
    relay.drop_final_replies()
    with listening() as heard:
        assert send(relay.options(), message()) == 1
    assert names(heard) == ["post_send", "message_sent"]
    assert heard[1][1]["result"].attempts == 2
    assert len(relay.messages) == 1


def test_each_message_of_a_list_fires_its_own_in_order(relay: Relay) -> None:
    relay.refuse("bob@example.com")
    mails = [message("ann@example.com"), message("bob@example.com"), message("no")]
    mails += [message() for _ in range(40)]
    with listening() as heard:
        error = send(relay.options(), *mails)
    ends = [each for each in heard if each[0] != "post_send"]
    assert [each[1]["message"] for each in ends] == mails
    assert names(ends)[:4] == [
        "message_sent",
        "message_failed",
        "message_failed",
        "message_sent",
    ]
    assert isinstance(error, exceptions.RecipientsRefused)
    assert [each[1]["result"] for each in ends] == list(error.results)


def test_one_message_to_many_fires_one_signal(relay: Relay) -> None:
    relay.refuse("bob@example.com")
    mail = message("ann@example.com", "bob@example.com", "eve@example.com")
    mail.merge_metadata = {"ann@example.com": {"n": 1}}
    with listening() as heard:
        assert send(relay.options(), mail) == 1
    assert names(heard) == ["post_send", "message_sent"]
    recipients = mail.anymail_status.recipients
    assert [each.status for each in recipients.values()] == [
        "queued",
        "rejected",
        "queued",
    ]
    ids = [each.message_id for each in recipients.values()]
    assert len(set(ids)) == 3
    assert mail.anymail_status.esp_response.message_id == ids[0]
    received = [each.metadata["django_message_id"] for each in relay.messages]
    assert received == [ids[0], ids[2]]


# -- Listeners ---------------------------------------------------------------------------


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


def test_a_message_without_recipients_fires_nothing(relay: Relay) -> None:
    mail: Any = EmailMessage("Hi", "Hello", "shop@example.com", [])
    with listening() as heard:
        assert send(relay.options(), mail) == 0
    assert heard == []
    assert mail.anymail_status.esp_response.phase is Phase.NO_RECIPIENTS


def test_a_receiver_that_is_interrupted_keeps_no_signal_from_the_others(
    relay: Relay,
) -> None:
    def interrupt(**_: Any) -> None:
        raise KeyboardInterrupt

    mails = [message(), message("no"), message()]
    with (
        listening() as heard,
        receiver(message_sent, interrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        EmailBackend(**relay.options()).send_messages(mails)
    ends = [name for name in names(heard) if name != "post_send"]
    assert ends == ["message_sent", "message_failed", "message_sent"]


@pytest.mark.parametrize("signal", [post_send, message_sent], ids=["post", "sent"])
def test_a_receiver_that_raises_is_logged_and_changes_nothing(
    relay: Relay, caplog: pytest.LogCaptureFixture, signal: Signal
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("a receiver's own problem")

    with receiver(signal, fail), listening() as heard:
        assert send(relay.options(), message(), message()) == 2
    assert names(heard) == ["post_send", "message_sent"] * 2
    assert "a receiver's own problem" in caplog.text


def test_a_receiver_that_raises_does_not_replace_the_error(
    relay: Relay,
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("a receiver's own problem")

    relay.refuse("ann@example.com")
    with receiver(message_failed, fail):
        error = send(relay.options(), message())
    assert isinstance(error, exceptions.RecipientsRefused)


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

    with refused_port() as port:
        options: dict[str, Any] = {
            "api_token": "t",
            "host": "127.0.0.1",
            "port": port,
            "security": "tls",
            "retries": 0,
        }

        def complain(**_: Any) -> None:
            depths.append(len(depths))
            send(options, message())

        with receiver(message_failed, complain):
            send(options, message())
    assert depths == [0, 1]


# -- The log -----------------------------------------------------------------------------


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
    # The relay in this process has a log of its own.
    records = [each for each in caplog.records if each.name == "django_lettermint"]
    loud = [each for each in records if each.levelno >= logging.INFO]
    assert [each.levelno for each in loud] == [logging.WARNING] + [logging.ERROR] * 3
    assert not any("@" in each.getMessage() for each in loud)
    quiet = " ".join(each.getMessage() for each in records)
    for address in ("bob@example.com", "broken@@example.com", "bad@example.com"):
        assert address in quiet


def test_a_failure_is_logged_with_its_step_and_code(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    relay.refuse("ann@example.com")
    error = send(relay.options(), message())
    [record] = [each for each in caplog.records if each.levelno >= logging.INFO]
    assert record.getMessage() == (
        f"Message {error.result.message_id}: not_sent at rcpt "
        f"on 127.0.0.1:{relay.port('tls')} "
        "(RecipientsRefused, code 550, attempts: 1)"
    )


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return our lines of at least this level."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "django_lettermint" and record.levelno >= level
    ]


def retries_in(lines: list[str]) -> list[str]:
    return [line for line in lines if "trying again" in line]


def test_a_relay_that_refuses_connections_is_logged_with_its_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with refused_port() as port:
        options = {"host": "127.0.0.1", "port": port, "security": "tls"}
        send({"api_token": "t", "retries": 2, **options}, message())
    [line] = logged(caplog, logging.ERROR)
    where = f"127.0.0.1:{port}"
    assert f"not_sent at connect on {where} (ConnectFailed, code None" in line
    # Each try counts, though no connection came of it.
    assert "attempts: 3)" in line
    assert "Connection refused" in line


@pytest.mark.parametrize(
    ("options", "script", "words"),
    [
        ({"cert": "expired"}, [], "certificate not accepted: certificate has expired"),
        ({}, [On("auth", do=reply(535, "5.7.8 no"))], "535 at AUTH PLAIN"),
        ({}, [On("banner", do=reply(554, "5.3.2 away"))], "554 5.3.2 away"),
    ],
    ids=["certificate", "login", "greeting"],
)
def test_a_failure_of_the_connection_is_logged_with_what_was_said(
    options: dict[str, Any],
    script: list[On],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FaultServer(script, **options) as server:
        error = send(server.options(), message())
        [line] = logged(caplog, logging.ERROR)
        assert f" on 127.0.0.1:{server.port} " in line
    assert words in line
    assert type(error).__name__ in line
    assert f"at {error.result.phase} on" in line
    assert "attempts: 1)" in line


@pytest.mark.parametrize(
    ("phase", "do", "step", "reason"),
    [
        ("banner", reply(421, "4.7.0 busy", close=True), "connect", "421"),
        ("auth", reply(454, "4.7.0 later"), "auth", "454"),
        ("mail", reply(421, "4.3.2 bye", close=True), "mail", "421"),
        ("rcpt", drop(), "rcpt", "ConnectionResetError"),
    ],
)
def test_a_connection_that_is_tried_again_leaves_a_line_at_info(
    phase: Any, do: Any, step: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with FaultServer([On(phase, do=do, times=1)]) as server:
        assert send(server.options(), message()) == 1
    [line] = retries_in(logged(caplog, logging.INFO))
    where = f"127.0.0.1:{server.port} failed at {step}"
    assert line == f"{where} ({reason}): trying again on a new connection (retry)"


def test_a_used_connection_that_is_replaced_leaves_a_line_at_info(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with FaultServer([On("mail", do=drop(), message=2)]) as server:
        assert send(server.options(), message()) == 1
        assert send(server.options(), message()) == 1
    [line] = retries_in(logged(caplog, logging.INFO))
    assert line.endswith("trying again on a new connection (replace)")


def test_what_a_closing_server_says_of_an_address_is_logged_at_debug_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    words = reply(421, "4.7.0 no more for ann@example.com", close=True)
    with FaultServer([On("rcpt", do=words)]) as server:
        send(server.options(retries=1), message())
    assert not any("@" in line for line in logged(caplog, logging.INFO))
    assert any("ann@example.com" in line for line in logged(caplog, logging.DEBUG))


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


@contextmanager
def handler(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger("django_lettermint")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def test_errors_that_are_reported_by_mail_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with refused_port() as port:
        options: dict[str, Any] = {
            "api_token": "t",
            "host": "127.0.0.1",
            "port": port,
            "security": "tls",
            "retries": 0,
        }
        mailing = Mailing(options)
        with handler(mailing), listening() as heard:
            error = send(options, message())
    # That the report could not be mailed is told at DEBUG, which is not mailed.
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


def test_failing_silently_does_not_hide_settings_that_are_wrong() -> None:
    with pytest.raises(Exception, match="api_token"):
        EmailBackend(fail_silently=True)


def test_signals_come_in_the_thread_that_sends(relay: Relay) -> None:
    threads = []

    def hear(**_: Any) -> None:
        threads.append(threading.current_thread())

    with receiver(message_sent, hear):
        mails = [message() for _ in range(60)]
        send(relay.options(batch_connections=2), *mails)
    assert threads == [threading.current_thread()] * 60


def test_a_450_to_all_is_transient() -> None:
    with FaultServer([On("rcpt", do=reply(450, "4.2.0 busy"))]) as server:
        error = send(server.options(), message())
    assert isinstance(error, exceptions.RecipientsRefused)
    assert error.transient
    assert error.retry_safe
    assert error.smtp_code == 450
