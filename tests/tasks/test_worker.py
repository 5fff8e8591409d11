"""The worker: what it tries again and how, when it gives up, and which tasks it refuses."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from django_lettermint import backend, tasks, worker
from django_lettermint.exceptions import (
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    SenderRefused,
)
from django_lettermint.tasks.queued import QueuedMessage
from tests.faultserver import Action, FaultServer, On, drop, reply
from tests.sending import mail, message
from tests.tasks.queueing import Queue, ServedQueue, settings_for

if TYPE_CHECKING:
    from django_lettermint.results import SendResult


def statuses(result: SendResult) -> dict[str, str]:
    return {who: each.status for who, each in result.recipients.items()}


def people(count: int) -> list[str]:
    return [f"{number}@example.org" for number in range(count)]


# -- Retries ---------------------------------------------------------------------------

PUT_OFF = On("mail", reply(451, "later"))
B_IS_PUT_OFF = On("rcpt", reply(451, "4.2.1 later"), match="b@")
LOSES_THE_REPLY = On("dot", drop(deliver=True), times=1)
SECOND_IS_PUT_OFF = On("dot", reply(451, "later"), message=2)


@pytest.mark.parametrize(
    ("script", "count", "idempotency", "outcomes"),
    [
        ([replace(PUT_OFF, times=2)], 1, True, ["put back"] * 2 + ["sent"]),
        ([On("mail", reply(550, "no"))], 1, True, ["not_sent"]),
        ([LOSES_THE_REPLY], 1, True, ["sent"]),
        ([LOSES_THE_REPLY], 1, False, ["unknown"]),
        ([SECOND_IS_PUT_OFF], 120, True, ["put back", "sent"]),
        ([LOSES_THE_REPLY, SECOND_IS_PUT_OFF], 60, False, ["put back", "unknown"]),
    ],
)
def test_only_what_another_try_may_change_is_tried_again(
    queue: ServedQueue,
    script: list[On],
    count: int,
    outcomes: list[str],
    *,
    idempotency: bool,
) -> None:
    queue.server.script += [replace(each) for each in script]
    with settings_for(queue.server, idempotency=idempotency, retries=0):
        queue.send(mail(bcc=people(count)))
        assert queue.run_all() == outcomes
    assert set(queue.server.delivered.values()) <= {1}
    assert len(queue.server.delivered) == (0 if outcomes == ["not_sent"] else count + 1)
    assert len(queue.sent) + len(queue.failed) == 1
    assert len(queue.sent) == (outcomes[-1] == "sent")


def test_a_transient_refusal_is_put_back_with_the_same_bytes_and_key(
    queue: ServedQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_lettermint")
    queue.server.script.append(replace(PUT_OFF, times=1))
    queue.send(mail(), queue_name="mail", priority=7)
    before = queue.form
    assert queue.run() == "put back"
    after = queue.form
    [result] = queue.tasks
    assert (result.task.queue_name, result.task.priority) == ("mail", 7)
    assert (queue.sent, queue.failed) == ([], [])
    assert "not sent yet, next try in" in caplog.text
    assert queue.run() == "sent"
    for name in ("content", "give_up_at", "using"):
        assert after[name] == before[name]
    assert after["transactions"][0]["envelope"] == before["transactions"][0]["envelope"]
    assert after["tries"] == 1
    [(_, sent)] = queue.sent
    assert sent.attempts == 2


@pytest.mark.parametrize(
    ("tries", "pause"), [(0, 5), (1, 10), (5, 160), (10, 3600), (30, 3600)]
)
def test_pauses_double_up_to_an_hour_and_vary_by_half(
    queue: ServedQueue, tries: int, pause: int
) -> None:
    queue.server.script.append(PUT_OFF)
    queue.send(mail())
    queue.form["tries"] = tries
    began = timezone.now()
    queue.run()
    [result] = queue.tasks
    assert result.task.run_after is not None
    assert result.task.run_after >= began + timedelta(seconds=pause * 0.5)
    assert result.task.run_after <= timezone.now() + timedelta(seconds=pause * 1.5)


@pytest.mark.parametrize(
    ("answer", "outcome"), [(None, "sent"), (reply(554, "conflict"), "unknown")]
)
def test_a_lost_reply_is_settled_by_the_key_if_the_relay_takes_the_repeat(
    queue: ServedQueue, answer: Action | None, outcome: str
) -> None:
    queue.server.script[:] = [On("dot", drop(deliver=True))]
    backend.EmailBackend().open()  # before the short deadline, which is for the message
    with settings_for(queue.server, retries=0, deadline=1):
        queue.send(mail())
        assert queue.run() == "put back"
    assert queue.form["transactions"][0]["outcome"] == "unknown"
    queue.server.script[:] = [On("mail", answer)] if answer else []
    assert queue.run() == outcome
    assert queue.server.delivered == {"bob@example.org": 1}
    [(_, result, *error)] = queue.sent + queue.failed
    assert result.outcome.value == outcome
    assert all(isinstance(each, DeliveryUnknown) for each in error)


def test_a_message_is_kept_while_the_certificate_is_not_verified(
    queue: ServedQueue,
) -> None:
    queue.send(mail())
    with settings_for(queue.server, ca_file=None):
        assert queue.run() == "put back"
    assert queue.server.deliveries == []
    assert queue.run() == "sent"


def test_a_recipient_put_off_is_tried_again_alone(queue: ServedQueue) -> None:
    queue.server.script += [
        replace(B_IS_PUT_OFF, times=1),
        On("rcpt", reply(550, "5.1.1 unknown"), match="c@"),
    ]
    queue.send(mail("a@x.test", "b@x.test", "c@x.test"))
    assert queue.run_all() == ["put back", "sent"]
    assert queue.server.delivered == {"a@x.test": 1, "b@x.test": 1}
    [(received, result)] = queue.sent
    expected = {"a@x.test": "queued", "b@x.test": "queued", "c@x.test": "rejected"}
    assert statuses(result) == expected
    assert result.recipients["c@x.test"].enhanced_code == "5.1.1"
    assert received.to == ["a@x.test", "b@x.test", "c@x.test"]


def test_no_two_transactions_of_one_message_have_the_same_key(
    queue: ServedQueue,
) -> None:
    queue.server.script.append(replace(B_IS_PUT_OFF, times=2))
    merged = message("a@x.test", "c@x.test", cc=["b@x.test"])
    merged.merge_metadata = {"a@x.test": {"n": 1}, "c@x.test": {"n": 2}}
    merged.idempotency_key = "order-1"
    queue.send(merged)
    assert queue.run_all() == ["put back", "put back", "sent", "sent"]
    assert len(queue.server.deliveries) == 4
    keys = {each.key for each in queue.server.deliveries}
    assert len(keys) == 4
    assert "order-1" in keys


def broker_is_away(form: dict[str, Any], seconds: float) -> None:
    raise ConnectionError


def test_a_partly_sent_message_ends_when_it_cannot_be_put_back(
    queue: ServedQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.server.script.append(B_IS_PUT_OFF)
    queue.send(mail("a@x.test", "b@x.test"))
    returned = worker.run(queue.form, broker_is_away)
    [(_, result)] = queue.sent
    assert returned == {"message_id": result.message_id, "outcome": "sent"}
    assert statuses(result) == {"a@x.test": "queued", "b@x.test": "failed"}
    assert result.recipients["b@x.test"].code == 451
    assert "did not take it back (ConnectionError)" in caplog.text


def test_an_unsent_message_stays_with_its_task_when_it_cannot_be_put_back(
    queue: ServedQueue,
) -> None:
    queue.server.script.append(PUT_OFF)
    queue.send(mail())
    with pytest.raises(ConnectionError):
        worker.run(queue.form, broker_is_away)
    assert (queue.sent, queue.failed) == ([], [])


def test_a_task_backend_that_cannot_defer_does_not_retry_and_says_so(
    queue: ServedQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.server.script.append(PUT_OFF)
    tasks.EmailBackend().send_messages([mail()])
    assert "its queue has no run_after" in caplog.text
    [(_, _, error)] = queue.failed
    assert isinstance(error, SenderRefused)


# -- Giving up -------------------------------------------------------------------------


def test_a_message_is_put_back_until_its_time_is_over(queue: ServedQueue) -> None:
    queue.send(mail("a@x.test"))
    queue.send(mail("b@x.test"), give_up_after=600)
    queue.tasks[1].args[0]["tries"] = 9  # its next pause is half an hour at least
    queue.server.close_door()
    assert [queue.run(), queue.run()] == ["put back", "not_sent"]
    [(message, _, error)] = queue.failed
    assert message.to == ["b@x.test"]
    assert isinstance(error, ConnectFailed)


@pytest.mark.parametrize(
    ("again", "outcome", "kind"),
    [
        ({}, "not_sent", ConnectionLost),
        ({"again": True}, "unknown", DeliveryUnknown),
    ],
)
def test_a_message_that_waited_too_long_is_not_sent_and_unknown_if_it_had_begun(
    queue: ServedQueue, again: dict[str, bool], outcome: str, kind: type[Exception]
) -> None:
    queue.send(mail())
    queue.form["give_up_at"] = time.time() - 1
    assert worker.run(queue.form, None, **again)["outcome"] == outcome
    [(_, result, error)] = queue.failed
    assert isinstance(error, kind)
    assert "give_up_after" in str(error)
    assert result.outcome.value == outcome
    if isinstance(error, DeliveryUnknown):
        assert statuses(result) == {"bob@example.org": "unknown"}
        assert (error.retry_safe, error.repeatable) == (False, False)
    assert queue.server.connections == 0


@pytest.mark.parametrize(("attempt", "outcome"), [(1, "not_sent"), (2, "unknown")])
def test_a_second_attempt_of_a_task_says_that_a_worker_had_begun(
    queue: ServedQueue, attempt: int, outcome: str
) -> None:
    queue.send(mail())
    queue.form["give_up_at"] = time.time() - 1
    assert queue.run(attempt=attempt) == outcome


def test_waiting_too_long_keeps_the_recipients_that_have_got_it(
    queue: ServedQueue,
) -> None:
    queue.server.script.append(B_IS_PUT_OFF)
    queue.send(mail("a@x.test", "b@x.test"))
    queue.run()
    queue.form["give_up_at"] = time.time() - 1
    assert queue.run() == "sent"
    [(_, result)] = queue.sent
    assert statuses(result) == {"a@x.test": "queued", "b@x.test": "failed"}


# -- The JSON form ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "version 2"),
        ({"transactions": []}, "no transactions"),
        ({"transactions": ["x"]}, "not a queued message"),
        ({"give_up_at": "x"}, "'x'"),
        ({"tries": "x"}, "'x'"),
        ({"using": "away"}, "'away', which is not in MAILERS"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused_and_its_message_stays(
    queue: Queue, change: dict[str, Any], problem: str
) -> None:
    queue.send(mail())
    with pytest.raises((ValueError, ImproperlyConfigured), match=problem):
        worker.run(queue.form | change, None)
    assert queue.failed == []


@pytest.mark.parametrize("form", [None, [1], {}])
def test_what_is_no_form_is_refused(form: Any) -> None:
    with pytest.raises(ValueError, match="version None"):
        worker.run(form, None)


def test_a_form_written_by_the_first_release_is_read(server: FaultServer) -> None:
    envelope = {
        "version": 1,
        "mail_from": "ann@example.org",
        "recipients": ["bob@example.org"],
        "message_id": "id",
        "idempotency_key": "key",
        "smtputf8": False,
    }
    unknown = {
        "envelope": envelope,
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
    form = {
        "version": 1,
        "using": None,
        "give_up_at": 1.0,
        "tries": 1,
        "key_given": True,
        "content": "U3ViamVjdDogaGkNCg0KaGkNCg==",
        "transactions": [unknown],
    }
    queued = QueuedMessage.from_json(form, backend.EmailBackend().config)
    assert queued.to_json() == form
    assert queued.submissions[0].envelope.content == b"Subject: hi\r\n\r\nhi\r\n"


def test_contents_that_differ_travel_both(queue: Queue) -> None:
    queue.send(mail(bcc=people(60)))
    config = backend.EmailBackend().config
    queued = QueuedMessage.from_json(queue.form, config)
    second = queued.submissions[1]
    second.envelope = replace(second.envelope, header=b"Subject: 7 bit\r\n")
    again = QueuedMessage.from_json(json.loads(json.dumps(queued.to_json())), config)
    assert [each.envelope for each in again.submissions] == [
        each.envelope for each in queued.submissions
    ]
