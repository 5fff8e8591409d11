"""The queueing backend, the task, and what travels between them."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import django
import pytest
from anymail.exceptions import AnymailCancelSend
from anymail.message import AnymailMessage, AnymailStatus
from anymail.signals import post_send, pre_send
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from django_lettermint import backend as sending
from django_lettermint import tasks, worker
from django_lettermint.conf import queue_config
from django_lettermint.exceptions import (
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    EnqueueFailed,
    LettermintInvalidMessage,
    SenderRefused,
)
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.results import Outcome
from django_lettermint.tasks.queued import QueuedMessage
from django_lettermint.tasks.rebuild import message_from_bytes
from tests.faultserver import TOKEN, FaultServer, On, drop, reply
from tests.sending import Heard, backend, listening, mail
from tests.tasks.queueing import BrokenBackend, Queue, queueing, settings_for

MAILERS_EXIST = django.VERSION >= (6, 1)
SENDS = "django_lettermint.backend.EmailBackend"
QUEUES = "django_lettermint.tasks.EmailBackend"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(idempotency=True) as running, settings_for(running, retries=0):
        yield running


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def heard() -> Iterator[Heard]:
    with listening() as found:
        yield found


def status_of(message: Any) -> AnymailStatus:
    found: AnymailStatus = message.anymail_status
    return found


# -- into the queue --------------------------------------------------------------------


def test_a_message_is_queued_and_not_sent(server: FaultServer, queue: Queue) -> None:
    message = mail("bob@example.org")

    assert queueing().send_messages([message]) == 1

    assert len(queue.tasks) == 1
    assert server.connections == 0
    assert status_of(message).status == {"queued"}
    assert status_of(message).recipients["bob@example.org"].status == "queued"


def test_nothing_queues_nothing(server: FaultServer, queue: Queue) -> None:
    assert queueing().send_messages([]) == 0
    assert queue.tasks == []


def test_the_worker_sends_what_was_frozen(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    message = mail("bob@example.org")
    queueing().send_messages([message])
    message.body = "changed afterwards"

    outcome = queue.run()

    [delivery] = server.deliveries
    [(_, result)] = heard.sent
    assert b"How are you?" in delivery.content
    assert delivery.key == result.idempotency_key
    assert outcome == {"message_id": result.message_id, "outcome": "sent"}
    assert status_of(message).message_id == result.message_id
    assert heard.failed == []


def test_the_immediate_backend_sends_at_once(server: FaultServer, heard: Heard) -> None:
    assert tasks.EmailBackend().send_messages([mail("bob@example.org")]) == 1

    assert server.delivered == {"bob@example.org": 1}
    assert len(heard.sent) == 1


def test_the_form_is_json_without_the_token(server: FaultServer, queue: Queue) -> None:
    queueing().send_messages([mail()])

    text = json.dumps(queue.form)

    assert TOKEN not in text
    assert queue.form["version"] == 1


def test_route_tag_and_metadata_travel(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    message = LettermintMessage("Hello", "…", "ann@example.org", ["bob@example.org"])
    message.tag, message.metadata = "welcome", {"order": 7}
    with extras(route="news"):
        queueing().send_messages([message])

    queue.run()

    [(received, result)] = heard.sent
    assert isinstance(received, LettermintMessage)
    assert (received.route, received.tag) == ("news", "welcome")
    assert received.metadata == {"order": "7", "django_message_id": result.message_id}
    assert b"X-LM-Metadata-order: 7\r\n" in server.deliveries[0].content


def test_each_recipient_of_a_merge_is_a_task_of_its_own(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    message = AnymailMessage("Hi", "…", "ann@example.org", ["a@x.test", "b@x.test"])
    message.merge_metadata = {"a@x.test": {"n": 1}, "b@x.test": {"n": 2}}

    assert queueing().send_messages([message]) == 1
    assert len(queue.tasks) == 2
    assert queue.run_to_the_end() == ["sent", "sent"]

    assert server.delivered == {"a@x.test": 1, "b@x.test": 1}
    assert [message.to for message, _ in heard.sent] == [["a@x.test"], ["b@x.test"]]


def test_many_recipients_are_one_task_with_the_content_once(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    people = [f"{number}@example.org" for number in range(120)]
    queueing().send_messages([mail(bcc=people)])

    assert len(queue.form["transactions"]) == 3
    assert not any("content" in each["envelope"] for each in queue.form["transactions"])
    assert queue.run_to_the_end() == ["sent"]

    assert len(server.deliveries) == 3
    [(_, result)] = heard.sent
    assert len(result.recipients) == 121


def test_options_reach_the_task(server: FaultServer, queue: Queue) -> None:
    queueing(queue_name="mail", priority=7).send_messages([mail()])

    [result] = queue.tasks
    assert (result.task.queue_name, result.task.priority) == ("mail", 7)


def test_a_message_that_is_too_large_for_the_queue_is_refused(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    large, small = mail("a@x.test"), mail("b@x.test")
    large.body = "large\n" * 200

    with pytest.raises(LettermintInvalidMessage, match="`max_bytes`"):
        queueing(max_bytes=1000).send_messages([large, small])

    assert len(queue.tasks) == 1
    assert [message for message, *_ in heard.failed] == [large]


def test_an_invalid_message_fails_at_once_and_the_others_go_on(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    bad, good = mail(), mail()
    bad.tag = "not\na tag"  # type: ignore[attr-defined]

    assert queueing(fail_silently=True).send_messages([bad, good]) == 1

    assert len(queue.tasks) == 1
    assert [message for message, *_ in heard.failed] == [bad]


def test_a_cancelled_message_is_not_queued(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    def cancel(**_: object) -> None:
        raise AnymailCancelSend

    pre_send.connect(cancel)
    try:
        assert queueing().send_messages([mail()]) == 0
    finally:
        pre_send.disconnect(cancel)

    assert queue.tasks == []
    assert heard.failed == []


def test_a_task_backend_that_fails_leaves_the_message_unknown(
    server: FaultServer, heard: Heard
) -> None:
    Queue("broken")
    message = mail("Bob@Example.org")

    with pytest.raises(EnqueueFailed, match=r"'broken'.*ConnectionError") as caught:
        tasks.EmailBackend(task_backend="broken").send_messages([message])

    error = caught.value
    assert isinstance(error.__cause__, ConnectionError)
    assert not error.retry_safe
    [result] = error.results
    assert result.outcome is Outcome.UNKNOWN
    assert [each.status for each in result.recipients.values()] == ["unknown"]
    assert heard.failed == [(message, result, error)]
    assert error.result is status_of(message).esp_response is result
    assert status_of(message).status == {"unknown"}
    assert status_of(message).message_id == result.message_id is not None


class AnswerIsLost(tasks.EmailBackend):
    """Its queue has each task, but never answers."""

    def enqueue(self, form: dict[str, Any]) -> None:
        super().enqueue(form)
        raise ConnectionError


def test_a_message_whose_task_was_stored_without_an_answer_is_sent_once(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    sender = AnswerIsLost(task_backend="dummy", fail_silently=True)

    assert sender.send_messages([mail("bob@example.org")]) == 0
    queue.run()

    [(_, failed, _)] = heard.failed
    [(_, sent)] = heard.sent
    assert failed.outcome is Outcome.UNKNOWN
    assert failed.idempotency_key == sent.idempotency_key
    assert server.delivered == {"bob@example.org": 1}


def test_no_post_send_is_sent_for_a_queue_that_did_not_answer(
    server: FaultServer, queue: Queue
) -> None:
    statuses: list[AnymailStatus] = []

    def on_post_send(status: AnymailStatus, **_: object) -> None:
        statuses.append(status)

    post_send.connect(on_post_send)
    try:
        AnswerIsLost(task_backend="dummy", fail_silently=True).send_messages([mail()])
    finally:
        post_send.disconnect(on_post_send)

    assert statuses == []


def merged(*to: str) -> AnymailMessage:
    """Return a message that is a task for each recipient, each with a copy for carol."""
    message = AnymailMessage("Hi", "…", "ann@example.org", to, cc=["carol@x.test"])
    message.merge_metadata = {who: {"who": who} for who in to}
    return message


@pytest.fixture
def takes_one() -> Iterator[Queue]:
    queue = Queue("broken")
    BrokenBackend.takes = 1
    yield queue
    BrokenBackend.takes = 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("on_commit", [False, True])
def test_a_message_of_which_some_tasks_are_taken_ends_unknown_and_once(
    server: FaultServer, takes_one: Queue, heard: Heard, *, on_commit: bool
) -> None:
    message = merged("a@x.test", "b@x.test", "c@x.test")
    backend = tasks.EmailBackend(
        task_backend="broken", fail_silently=True, on_commit=on_commit
    )
    with transaction.atomic():
        assert backend.send_messages([message]) == 1

    assert len(takes_one.tasks) == 1
    [(failed, result, error)] = heard.failed
    assert failed is message
    assert isinstance(error, EnqueueFailed)
    assert result.outcome is Outcome.UNKNOWN
    expected = {
        "a@x.test": "queued",
        "b@x.test": "unknown",
        "c@x.test": "failed",
        "carol@x.test": "unknown",
    }
    found = {who: each.status for who, each in result.recipients.items()}
    assert found == expected
    recipients = message.anymail_status.recipients
    assert {who: each.status for who, each in recipients.items()} == expected


def test_an_interrupt_while_queueing_ends_every_message(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    class Interrupted(tasks.EmailBackend):
        def enqueue(self, form: dict[str, Any]) -> None:
            if queue.tasks:
                raise KeyboardInterrupt
            super().enqueue(form)

    messages = [mail(f"{name}@x.test") for name in "abcd"]

    with pytest.raises(KeyboardInterrupt):
        Interrupted(task_backend="dummy").send_messages(messages)

    assert [(message, result.outcome) for message, result, _ in heard.failed] == [
        (messages[1], Outcome.UNKNOWN),
        (messages[2], Outcome.NOT_SENT),
        (messages[3], Outcome.NOT_SENT),
    ]


def test_an_interrupt_while_preparing_ends_every_message(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    def interrupt(message: EmailMessage, **_: object) -> None:
        if message.to == ["b@x.test"]:
            raise SystemExit

    messages = [mail(f"{name}@x.test") for name in "abc"]
    pre_send.connect(interrupt)
    try:
        with pytest.raises(SystemExit):
            queueing().send_messages(messages)
        with pytest.raises(SystemExit):
            queueing().send_messages(message for message in messages)
    finally:
        pre_send.disconnect(interrupt)

    # What a generator still holds is not taken.
    assert [message for message, *_ in heard.failed] == messages[1:]
    assert len(queue.tasks) == 2


def test_an_error_of_a_pre_send_receiver_is_raised_after_earlier_messages_are_queued(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    def fail(message: EmailMessage, **_: object) -> None:
        if message.to == ["b@x.test"]:
            raise ZeroDivisionError

    pre_send.connect(fail)
    try:
        with pytest.raises(ZeroDivisionError):
            queueing().send_messages([mail("a@x.test"), mail("b@x.test")])
    finally:
        pre_send.disconnect(fail)

    assert len(queue.tasks) == 1
    assert heard.failed == []


def test_an_error_has_a_result_for_each_message(
    server: FaultServer, queue: Queue
) -> None:
    bad, good = mail("a@x.test"), mail("b@x.test")
    bad.tag = "not\na tag"  # type: ignore[attr-defined]

    with pytest.raises(LettermintInvalidMessage) as caught:
        queueing().send_messages([bad, good])

    failed, queued = caught.value.results
    assert failed.outcome is Outcome.NOT_SENT
    assert queued.outcome is Outcome.UNKNOWN
    assert queued.message_id == status_of(good).message_id
    assert queued.recipients["b@x.test"].status == "queued"
    envelope = queue.form["transactions"][0]["envelope"]
    assert queued.idempotency_key == envelope["idempotency_key"]


def test_the_backend_can_be_pickled_without_the_token(server: FaultServer) -> None:
    pickled = pickle.dumps(tasks.EmailBackend())

    assert TOKEN.encode() not in pickled
    assert type(pickle.loads(pickled)) is tasks.EmailBackend


@pytest.mark.django_db(transaction=True)
def test_on_commit_waits_for_the_transaction(server: FaultServer, queue: Queue) -> None:
    with transaction.atomic():
        assert queueing(on_commit=True).send_messages([mail()]) == 1
        assert queue.tasks == []

    assert len(queue.tasks) == 1


@pytest.mark.django_db(transaction=True)
def test_on_commit_forgets_what_is_rolled_back(
    server: FaultServer, queue: Queue
) -> None:
    with transaction.atomic():
        queueing(on_commit=True).send_messages([mail()])
        transaction.set_rollback(True)

    assert queue.tasks == []


@pytest.mark.django_db(transaction=True)
def test_on_commit_reports_what_the_queue_does_not_take_and_goes_on(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    class FailsOnce(tasks.EmailBackend):
        failed = False

        def enqueue(self, form: dict[str, Any]) -> None:
            if not self.failed:
                self.failed = True
                raise ConnectionError
            super().enqueue(form)

    first, second = mail("a@x.test"), mail("b@x.test")
    others: list[str] = []
    with transaction.atomic():
        sender = FailsOnce(task_backend="dummy", on_commit=True)
        assert sender.send_messages([first, second]) == 2
        transaction.on_commit(lambda: others.append("ran"))
        assert heard.failed == []

    [(message, result, error)] = heard.failed
    assert message is first
    assert isinstance(error, EnqueueFailed)
    assert error.result is result
    assert result.outcome is Outcome.UNKNOWN
    assert status_of(first).status == {"unknown"}
    assert status_of(second).status == {"queued"}
    assert len(queue.tasks) == 1
    assert others == ["ran"]


@pytest.mark.django_db(transaction=True)
def test_on_commit_without_a_transaction_raises_at_once(
    server: FaultServer, heard: Heard
) -> None:
    Queue("broken")

    with pytest.raises(EnqueueFailed):
        tasks.EmailBackend(task_backend="broken", on_commit=True).send_messages(
            [mail()]
        )

    assert len(heard.failed) == 1


@pytest.mark.django_db(transaction=True)
def test_by_default_a_transaction_is_not_waited_for(
    server: FaultServer, queue: Queue
) -> None:
    with transaction.atomic():
        queueing().send_messages([mail()])

        assert len(queue.tasks) == 1


# -- tried again -----------------------------------------------------------------------


def seconds_until_next(queue: Queue) -> float:
    [result] = queue.tasks
    assert result.task.run_after is not None
    return (result.task.run_after - timezone.now()) / timedelta(seconds=1)


def test_a_transient_refusal_is_put_back_with_the_same_bytes_and_key(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script.append(On("mail", reply(451, "later"), times=1))
    queueing(queue_name="mail", priority=7).send_messages([mail()])
    before = queue.form

    assert queue.run()["outcome"] == "put back"
    after = queue.form
    [result] = queue.tasks
    assert (result.task.queue_name, result.task.priority) == ("mail", 7)
    assert (heard.sent, heard.failed) == ([], [])
    assert queue.run()["outcome"] == "sent"

    def lasting(form: dict[str, Any]) -> dict[str, Any]:
        return {name: form[name] for name in ("content", "give_up_at", "using")}

    assert lasting(before) == lasting(after)
    assert after["transactions"][0]["envelope"] == before["transactions"][0]["envelope"]
    assert after["tries"] == 1
    [(_, sent)] = heard.sent
    assert sent.attempts == 2


def test_pauses_grow_and_vary(server: FaultServer, queue: Queue) -> None:
    server.script.append(On("mail", reply(451, "later")))
    queueing().send_messages([mail()])
    pauses = []
    for _ in range(4):
        queue.run()
        pauses.append(seconds_until_next(queue))

    for number, pause in enumerate(pauses):
        assert 5 * 2**number * 0.5 - 1 < pause < 5 * 2**number * 1.5


def test_a_pause_is_at_most_an_hour_and_a_half(
    server: FaultServer, queue: Queue
) -> None:
    server.script.append(On("mail", reply(451, "later")))
    queueing().send_messages([mail()])
    queue.form["tries"] = 30

    queue.run()

    assert 1799 <= seconds_until_next(queue) <= 5400


def test_no_connection_is_tried_again(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    queueing().send_messages([mail()])
    server.close_door()

    assert queue.run()["outcome"] == "put back"
    assert heard.failed == []


def test_a_lost_reply_is_settled_by_the_key(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script.append(On("dot", drop(deliver=True)))
    with settings_for(server, deadline=1):
        queueing().send_messages([mail()])
        assert queue.run()["outcome"] == "put back"
    replays = server.replays
    server.script.clear()

    assert queue.form["transactions"][0]["outcome"] == "unknown"
    assert queue.run()["outcome"] == "sent"
    assert server.delivered == {"bob@example.org": 1}
    assert server.replays == replays + 1
    assert len(heard.sent) == 1


def test_what_is_unknown_stays_so_when_the_repeat_is_refused(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script.append(On("dot", drop(deliver=True)))
    with settings_for(server, deadline=1):
        queueing().send_messages([mail()])
        queue.run()
    server.script[:] = [On("mail", reply(554, "conflict"))]

    assert queue.run()["outcome"] == "unknown"

    [(_, result, error)] = heard.failed
    assert result.outcome is Outcome.UNKNOWN
    assert isinstance(error, DeliveryUnknown)


def test_without_a_key_nothing_unknown_is_repeated(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script.append(On("dot", drop(deliver=True)))
    with settings_for(server, idempotency=False):
        queueing().send_messages([mail()])
        assert queue.run()["outcome"] == "unknown"

    assert server.delivered == {"bob@example.org": 1}
    assert len(heard.failed) == 1


def test_a_permanent_refusal_ends_at_once(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script.append(On("mail", reply(550, "no")))
    queueing().send_messages([mail()])

    assert queue.run()["outcome"] == "not_sent"

    [(_, _, error)] = heard.failed
    assert isinstance(error, SenderRefused)
    assert queue.tasks == []


def test_a_recipient_put_off_is_tried_again_alone(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script += [
        On("rcpt", reply(451, "4.2.1 later"), match="b@", times=1),
        On("rcpt", reply(550, "5.1.1 unknown"), match="c@"),
    ]
    queueing().send_messages([mail("a@x.test", "b@x.test", "c@x.test")])

    assert queue.run_to_the_end() == ["put back", "sent"]

    assert server.delivered == {"a@x.test": 1, "b@x.test": 1}
    first, second = server.deliveries
    assert second.key != first.key
    [(message, result)] = heard.sent
    assert {who: at.status for who, at in result.recipients.items()} == {
        "a@x.test": "queued",
        "b@x.test": "queued",
        "c@x.test": "rejected",
    }
    assert result.recipients["c@x.test"].enhanced_code == "5.1.1"
    assert message.to == ["a@x.test", "b@x.test", "c@x.test"]


def test_no_two_transactions_of_one_message_have_the_same_key(
    server: FaultServer, queue: Queue
) -> None:
    server.script.append(On("rcpt", reply(451, "4.2.1 later"), match="c@", times=2))
    message = mail("a@x.test", "b@x.test")
    message.cc = ["c@x.test"]
    message.merge_metadata = {"a@x.test": {"n": 1}, "b@x.test": {"n": 2}}  # type: ignore[attr-defined]
    message.idempotency_key = "order-1"  # type: ignore[attr-defined]
    queueing().send_messages([message])

    assert queue.run_to_the_end() == ["put back", "put back", "sent", "sent"]

    assert len(server.deliveries) == 4
    keys = {each.key for each in server.deliveries}
    assert len(keys) == 4
    assert "order-1" in keys


def test_recipients_refused_for_good_are_not_asked_again(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script += [
        On("rcpt", reply(550, "5.1.1 unknown"), match="b@"),
        On("data", reply(451, "later"), times=1),
    ]
    queueing().send_messages([mail("a@x.test", "b@x.test")])

    assert queue.run_to_the_end() == ["put back", "sent"]

    asked = [line for _, line in server.commands if b"RCPT TO:<b@x.test>" in line]
    assert len(asked) == 1
    assert server.delivered == {"a@x.test": 1}
    [(_, result)] = heard.sent
    assert result.recipients["b@x.test"].status == "rejected"


def test_of_several_transactions_only_the_undone_one_is_tried_again(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script.append(On("dot", reply(451, "later"), message=2))
    people = [f"{number}@example.org" for number in range(120)]
    queueing().send_messages([mail("bob@example.org", bcc=people)])

    assert queue.run_to_the_end() == ["put back", "sent"]

    assert set(server.delivered.values()) == {1}
    assert len(server.delivered) == 121
    assert len(heard.sent) == 1


def test_an_unknown_transaction_without_a_key_does_not_go_with_the_others(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script += [
        On("dot", drop(deliver=True), times=1),
        On("dot", reply(451, "later"), message=2),
    ]
    people = [f"{number}@example.org" for number in range(60)]
    with settings_for(server, idempotency=False, retries=0):
        queueing().send_messages([mail("bob@example.org", bcc=people)])
        assert queue.run_to_the_end() == ["put back", "unknown"]

    assert set(server.delivered.values()) == {1}
    assert len(heard.failed) == 1


def test_contents_that_differ_travel_both(server: FaultServer, queue: Queue) -> None:
    people = [f"{number}@example.org" for number in range(60)]
    queueing().send_messages([mail(bcc=people)])
    config = sending.EmailBackend().config
    message = QueuedMessage.from_json(queue.form, config)
    second = message.submissions[1]
    second.envelope = replace(second.envelope, header=b"Subject: 7 bit\r\n")

    again = QueuedMessage.from_json(json.loads(json.dumps(message.to_json())), config)

    assert [each.envelope for each in again.submissions] == [
        each.envelope for each in message.submissions
    ]


def broker_is_away(form: dict[str, Any], seconds: float) -> None:
    raise ConnectionError


def test_what_some_have_got_ends_when_it_cannot_be_put_back(
    server: FaultServer,
    queue: Queue,
    heard: Heard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.script.append(On("rcpt", reply(451, "4.2.1 later"), match="b@"))
    queueing().send_messages([mail("a@x.test", "b@x.test")])

    assert worker.run(queue.form, broker_is_away)["outcome"] == "sent"

    [(_, result)] = heard.sent
    assert {who: at.status for who, at in result.recipients.items()} == {
        "a@x.test": "queued",
        "b@x.test": "failed",
    }
    assert result.recipients["b@x.test"].code == 451
    assert "did not take it back (ConnectionError)" in caplog.text


def test_what_nobody_has_got_stays_with_its_task_when_it_cannot_be_put_back(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script.append(On("mail", reply(451, "later"), times=1))
    queueing().send_messages([mail()])

    with pytest.raises(ConnectionError):
        worker.run(queue.form, broker_is_away)

    assert (heard.sent, heard.failed) == ([], [])
    assert queue.run()["outcome"] == "sent"


# -- giving up -------------------------------------------------------------------------


def test_a_message_is_not_put_back_beyond_its_time(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script.append(On("mail", reply(451, "later")))
    queueing(give_up_after=2).send_messages([mail()])

    assert queue.run()["outcome"] == "not_sent"
    assert queue.tasks == []
    assert len(heard.failed) == 1


def test_a_message_that_waited_too_long_is_not_sent(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    queueing().send_messages([mail()])
    queue.form["give_up_at"] = time.time() - 1

    assert queue.run()["outcome"] == "not_sent"

    [(_, _, error)] = heard.failed
    assert isinstance(error, ConnectionLost)
    assert "give_up_after" in str(error)
    assert server.connections == 0


def test_waiting_too_long_keeps_what_is_done(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    server.script.append(On("rcpt", reply(451, "later"), match="b@"))
    queueing().send_messages([mail("a@x.test", "b@x.test")])
    queue.run()
    queue.form["give_up_at"] = time.time() - 1

    assert queue.run()["outcome"] == "sent"

    [(_, result)] = heard.sent
    assert result.recipients["a@x.test"].status == "queued"
    assert result.recipients["b@x.test"].status == "failed"


def test_a_message_that_another_worker_had_begun_is_unknown_when_its_time_is_over(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    queueing().send_messages([mail()])
    queue.form["give_up_at"] = time.time() - 1

    assert queue.run(attempt=2)["outcome"] == "unknown"

    [(_, result, error)] = heard.failed
    assert result.recipients["bob@example.org"].status == "unknown"
    assert isinstance(error, DeliveryUnknown)
    assert not error.retry_safe
    assert not error.repeatable
    assert "give_up_after" in str(error)
    assert server.connections == 0


def test_the_last_attempt_ends_before_the_relay_forgets_the_key(
    server: FaultServer, queue: Queue
) -> None:
    with settings_for(server, deadline=3600):
        queueing().send_messages([mail()])

    left = queue.form["give_up_at"] - time.time()
    assert left == pytest.approx(23 * 3600, abs=60)


def test_a_deadline_that_outlives_the_key_is_refused(server: FaultServer) -> None:
    with (
        settings_for(server, deadline=86_400),
        pytest.raises(ImproperlyConfigured, match="`deadline` of 86400 s"),
    ):
        queueing()


def test_a_task_backend_that_cannot_defer_does_not_retry_and_says_so(
    server: FaultServer, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    server.script.append(On("mail", reply(451, "later"), times=1))
    with caplog.at_level(logging.WARNING, "django_lettermint"):
        tasks.EmailBackend().send_messages([mail()])

    assert "its queue has no run_after" in caplog.text
    [(_, _, error)] = heard.failed
    assert isinstance(error, SenderRefused)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "version 2"),
        ({"transactions": None}, "not a queued message"),
        ({"transactions": [{}]}, "not a queued message"),
        ({"transactions": []}, "no transactions"),
        ({"transactions": ["x"]}, "not a queued message"),
        ({"give_up_at": "x"}, "'x'"),
        ({"tries": "x"}, "'x'"),
    ],
)
def test_a_form_of_another_release_is_refused_and_stays(
    server: FaultServer,
    queue: Queue,
    heard: Heard,
    change: dict[str, Any],
    problem: str,
) -> None:
    queueing().send_messages([mail()])
    queue.form.update(change)

    with pytest.raises(ValueError, match=problem):
        queue.run()
    assert heard.failed == []


@pytest.mark.parametrize("form", [None, [1], {}])
def test_what_is_no_form_is_refused(form: Any) -> None:
    with pytest.raises(ValueError, match="version None"):
        worker.run(form, None)


def test_a_form_for_a_mailer_that_workers_do_not_know_stays(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    queueing().send_messages([mail()])
    queue.form["using"] = "away"

    with pytest.raises(ImproperlyConfigured, match="'away', which is not in MAILERS"):
        queue.run()
    assert heard.failed == []


def test_a_form_written_by_the_first_release_is_read(server: FaultServer) -> None:
    form = {
        "version": 1,
        "using": None,
        "give_up_at": 1.0,
        "tries": 1,
        "key_given": True,
        "content": "U3ViamVjdDogaGkNCg0KaGkNCg==",
        "transactions": [
            {
                "envelope": {
                    "version": 1,
                    "mail_from": "ann@example.org",
                    "recipients": ["bob@example.org"],
                    "message_id": "id",
                    "idempotency_key": "key",
                    "smtputf8": False,
                },
                "attempts": 2,
                "outcome": "unknown",
                "recipients": ["bob@example.org", "carol@example.org"],
                "phase": "commit",
                "replies": {
                    "bob@example.org": [250, "ok"],
                    "carol@example.org": [550, "5.1.1 unknown"],
                },
                "reply": None,
                "failure": "timed out",
            }
        ],
    }
    message = QueuedMessage.from_json(form, sending.EmailBackend().config)

    assert message.to_json() == form
    assert message.submissions[0].envelope.content == b"Subject: hi\r\n\r\nhi\r\n"


# -- the sending backend ---------------------------------------------------------------


def test_without_a_sending_token_the_queue_cannot_be_made() -> None:
    with pytest.raises(ImproperlyConfigured, match="LETTERMINT_API_TOKEN"):
        queueing()


def test_relay_options_are_refused(server: FaultServer) -> None:
    with pytest.raises(ImproperlyConfigured, match="host is not an option"):
        queueing(host="127.0.0.1")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"task_backend": "none"}, "`task_backend`"),
        ({"queue_name": "none"}, "`queue_name`"),
        ({"priority": 101}, "from -100 to 100"),
        ({"give_up_after": 86_401}, "at most 86400"),
        ({"give_up_after": 0}, "at most 86400"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"on_commit": "yes"}, "on_commit"),
        ({"using": "away"}, "'away', which is not in MAILERS"),
    ],
)
def test_a_wrong_option_is_refused(
    server: FaultServer, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=problem):
        queueing(**options)


def test_options_are_found_in_settings() -> None:
    with override_settings(
        ANYMAIL={"LETTERMINT_QUEUE_NAME": "mail"}, LETTERMINT_GIVE_UP_AFTER=60
    ):
        config = queue_config({})

    assert (config.queue_name, config.give_up_after) == ("mail", 60.0)


def test_a_mailer_that_queues_must_name_the_one_that_sends(server: FaultServer) -> None:
    with pytest.raises(ImproperlyConfigured, match="needs the option `using`"):
        queueing(alias="default")


def test_a_mailer_that_queues_must_not_name_itself(server: FaultServer) -> None:
    with pytest.raises(ImproperlyConfigured, match="this mailer itself"):
        queueing(alias="default", using="default")


if MAILERS_EXIST:
    from django.core.mail import InvalidMailer, mailers

    @pytest.fixture
    def mailers_in_use(server: FaultServer) -> Iterator[None]:
        options = {"using": "relay", "task_backend": "dummy"}
        in_use = {
            "default": {"BACKEND": QUEUES, "OPTIONS": options},
            "relay": {"BACKEND": SENDS, "OPTIONS": server.options()},
            "circle": {"BACKEND": QUEUES, "OPTIONS": {"using": "default"}},
            "other": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"},
            "missing": {},
            "mistyped": {"BACKEND": "django_lettermint.backnd.EmailBackend"},
            "function": {"BACKEND": "django_lettermint.pool.get_stats"},
        }
        with override_settings(MAILERS=in_use):
            yield

    @pytest.mark.usefixtures("mailers_in_use")
    def test_the_worker_sends_by_the_mailer_that_using_names(
        server: FaultServer, queue: Queue
    ) -> None:
        message = mail("bob@example.org")
        message.send()

        assert queue.form["using"] == "relay"
        queue.run()
        assert server.delivered == {"bob@example.org": 1}

    @pytest.mark.usefixtures("mailers_in_use")
    def test_a_queue_behind_a_queue_is_refused(server: FaultServer) -> None:
        with pytest.raises(ImproperlyConfigured, match=f"must be {SENDS}"):
            mailers["circle"]

    @pytest.mark.usefixtures("mailers_in_use")
    @pytest.mark.parametrize("using", ["other", "missing", "mistyped", "function"])
    def test_a_mailer_of_another_kind_is_refused(
        server: FaultServer, using: str
    ) -> None:
        problem = f"`using` is '{using}': its BACKEND must be {SENDS}"
        with pytest.raises(InvalidMailer, match=problem):
            queueing(using=using, alias="queue")

    @pytest.mark.usefixtures("mailers_in_use")
    def test_a_pickled_mailer_is_found_by_its_alias(server: FaultServer) -> None:
        assert pickle.loads(pickle.dumps(mailers["default"])).alias == "default"


# -- the message of the signals --------------------------------------------------------


def rebuilt(message: EmailMessage, queue: Queue, heard: Heard) -> LettermintMessage:
    queueing().send_messages([message])
    queue.run()
    [(found, _)] = heard.sent
    assert isinstance(found, LettermintMessage)
    return found


def test_receivers_get_the_message_as_its_bytes_tell_it(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    message = EmailMultiAlternatives(
        "Grüße",
        "Wie geht's, Bob?\nAnn",
        "Ännchen <ann@example.org>",
        ["Bob <bob@example.org>"],
        cc=["carol@example.org"],
        bcc=["dan@example.org"],
        reply_to=["Eve <eve@example.org>"],
        headers={"X-Campaign": "frühling"},
    )
    message.attach_alternative("<p>Wie geht's?</p>", "text/html")
    message.attach("notes.txt", "not the body", "text/plain")

    found = rebuilt(message, queue, heard)

    assert found.subject == "Grüße"
    assert found.body.strip() == "Wie geht's, Bob?\nAnn"
    assert found.from_email == "Ännchen <ann@example.org>"
    assert found.to == ["bob@example.org"]
    assert found.cc == ["carol@example.org"]
    assert found.bcc == ["dan@example.org"]
    assert found.reply_to == ["eve@example.org"]
    assert found.extra_headers["X-Campaign"] == "frühling"
    assert "Message-ID" in found.extra_headers
    assert [mimetype for _, mimetype in found.alternatives] == ["text/html"]
    assert found.attachments == []


def test_a_message_without_text_or_subject_has_an_empty_body() -> None:
    found = message_from_bytes(
        b"Content-Type: text/html\r\n\r\n<p>Hi</p>\r\n", ["a@x.test"]
    )

    assert (found.subject, found.body, found.bcc) == ("", "", ["a@x.test"])
    assert found.alternatives[0][0] == "<p>Hi</p>\n"


def test_words_in_an_unknown_charset_stay_as_they_are() -> None:
    found = message_from_bytes(
        b"Subject: =?x-klingon?q?hi?=\r\n"
        b"Content-Type: text/plain; charset=x-klingon\r\n\r\nh\xc3\xa9\r\n",
        [],
    )

    assert found.subject == "=?x-klingon?q?hi?="
    assert found.body == "hé\n"


@pytest.mark.parametrize("charset", ["idna", "undefined", "\x00a"])
def test_a_body_in_what_is_no_charset_is_read_as_utf8(charset: str) -> None:
    head = f"Content-Type: text/plain; charset={charset}\r\n\r\n"
    found = message_from_bytes(head.encode() + b"h\xc3\xa9\r\n", [])

    assert found.body == "hé\n"


def test_an_attached_message_is_not_taken_for_the_body() -> None:
    attached = "Subject: Forwarded\r\n\r\nnot the body\r\n"
    found = message_from_bytes(
        (
            'Content-Type: multipart/mixed; boundary="-"\r\n\r\n'
            "---\r\nContent-Type: message/rfc822\r\n\r\n" + attached + "\r\n"
            "---\r\nContent-Type: text/html\r\n\r\n<p>Hi</p>\r\n"
            "-----\r\n"
        ).encode(),
        [],
    )

    assert found.body == ""
    assert [html for html, _ in found.alternatives] == ["<p>Hi</p>"]


@pytest.mark.parametrize(
    ("written", "sender"),
    [
        (
            "=?utf-8?q?=C3=84nnchen=2C_B=2E?= <ann@x.test>",
            '"Ännchen, B." <ann@x.test>',
        ),
        ('"B., Ann" <ann@x.test>', '"B., Ann" <ann@x.test>'),
        ("ann@x.test", "ann@x.test"),
        ("=?utf-8?q?=C3=84nnchen?=", "Ännchen"),
    ],
)
def test_the_sender_keeps_its_name(written: str, sender: str) -> None:
    assert (
        message_from_bytes(f"From: {written}\r\n\r\n".encode(), []).from_email == sender
    )


def test_the_message_of_a_signal_can_be_sent_again(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    message = mail()
    message.from_email = '"Ännchen, B." <ann@example.org>'
    again = rebuilt(message, queue, heard)

    assert backend(server).send_messages([again]) == 1


def test_raw_utf8_and_controls_in_headers_are_made_readable() -> None:
    found = message_from_bytes("Subject: Grüße,\r\n\tBob\x07\r\n\r\n".encode(), [])

    assert found.subject == "Grüße, Bob "


def test_headers_that_we_would_not_write_do_not_stop_a_signal() -> None:
    found = message_from_bytes(b"Subject: Hi\r\nX-LM-Metadata-: x\r\n\r\nHi\r\n", [])

    assert found.subject == "Hi"
    assert found.extra_headers == {"X-LM-Metadata-": "x"}


def test_a_message_without_connection_has_failed_for_a_given_time(
    server: FaultServer, queue: Queue, heard: Heard
) -> None:
    queueing(give_up_after=1).send_messages([mail()])
    server.close_door()

    assert queue.run()["outcome"] == "not_sent"
    [(_, _, error)] = heard.failed
    assert isinstance(error, ConnectFailed)
