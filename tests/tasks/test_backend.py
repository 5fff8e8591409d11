"""The queueing backend: what becomes a task, what ends at once, and which options fit."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import django
import pytest
from anymail.exceptions import AnymailCancelSend
from anymail.message import AnymailMessage
from anymail.signals import post_send, pre_send
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings

from django_lettermint import tasks
from django_lettermint.exceptions import EnqueueFailed, LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.results import Outcome
from tests.faultserver import TOKEN, FaultServer
from tests.listening import receiver
from tests.sending import mail, mails, status
from tests.tasks.queueing import Queue, ServedQueue, settings_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.core.mail import EmailMessage

UNKNOWN, NOT_SENT = Outcome.UNKNOWN, Outcome.NOT_SENT
MAILERS_EXIST = django.VERSION >= (6, 1)
SENDS = "django_lettermint.backend.EmailBackend"
QUEUES = "django_lettermint.tasks.EmailBackend"


def raising(error: type[BaseException], to: str) -> Callable[..., None]:
    """Return a receiver of `pre_send` that raises for messages to this address."""

    def receive(message: EmailMessage, **_: object) -> None:
        if message.to == [to]:
            raise error

    return receive


class Failing(tasks.EmailBackend):
    """Raises an error at one of its tasks, which it may store before."""

    def __init__(
        self,
        *,
        at: int = 1,
        stores: bool = False,
        error: type[BaseException] = ConnectionError,
        **options: Any,
    ) -> None:
        super().__init__(task_backend="dummy", **options)
        self.left, self.stores, self.error = at, stores, error

    def enqueue(self, form: dict[str, Any]) -> None:
        self.left -= 1
        if self.left or self.stores:
            super().enqueue(form)
        if not self.left:
            raise self.error


# -- what becomes a task ---------------------------------------------------------------


def test_a_message_is_queued_as_it_is_and_sent_by_the_worker(
    queue: ServedQueue,
) -> None:
    message = LettermintMessage("Hello", "…", "ann@example.org", ["bob@example.org"])
    message.tag, message.metadata = "welcome", {"order": 7}
    with extras(route="news"):
        assert queue.send(message) == 1
    assert queue.server.connections == 0
    assert status(message).status == {"queued"}
    assert TOKEN not in json.dumps(queue.form)
    message.tag = "changed afterwards"
    assert queue.run() == "sent"
    [delivery] = queue.server.deliveries
    [(received, result)] = queue.sent
    assert b"X-LM-Metadata-order: 7\r\n" in delivery.content
    assert delivery.key == result.idempotency_key
    assert status(message).message_id == result.message_id
    assert isinstance(received, LettermintMessage)
    assert (received.route, received.tag) == ("news", "welcome")
    assert received.metadata == {"order": "7", "django_message_id": result.message_id}
    assert queue.failed == []


def merged(*to: str, **fields: Any) -> AnymailMessage:
    """Return a message that is a task for each recipient."""
    message = AnymailMessage("Hi", "…", "ann@example.org", to, **fields)
    message.merge_metadata = {who: {"who": who} for who in to}
    return message


def test_each_recipient_of_a_merge_is_a_separate_task(queue: ServedQueue) -> None:
    assert queue.send(merged("a@x.test", "b@x.test")) == 1
    assert len(queue.tasks) == 2
    assert queue.run_all() == ["sent", "sent"]
    assert queue.server.delivered == {"a@x.test": 1, "b@x.test": 1}
    assert [message.to for message, _ in queue.sent] == [["a@x.test"], ["b@x.test"]]


def test_many_recipients_are_one_task_with_the_content_once(queue: ServedQueue) -> None:
    queue.send(mail(bcc=[f"{number}@example.org" for number in range(120)]))
    assert len(queue.form["transactions"]) == 3
    assert not any("content" in each["envelope"] for each in queue.form["transactions"])
    assert queue.run_all() == ["sent"]
    assert len(queue.server.deliveries) == 3
    [(_, result)] = queue.sent
    assert len(result.recipients) == 121


# -- what ends at once -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "problem"),
    [({"body": "large\n" * 200}, "`max_bytes`"), ({"tag": "not\na tag"}, "tag")],
    ids=["too large", "invalid"],
)
def test_a_message_that_cannot_be_queued_fails_at_once_and_the_others_are_queued(
    queue: Queue, fields: dict[str, Any], problem: str
) -> None:
    bad, good = LettermintMessage(to=["a@x.test"], **fields), mail("b@x.test")
    with pytest.raises(LettermintInvalidMessage, match=problem) as caught:
        queue.send(bad, good, max_bytes=1000)
    failed, queued = caught.value.results
    assert queue.failed == [(bad, failed, caught.value)]
    assert failed.outcome is NOT_SENT
    assert queued.outcome is UNKNOWN
    assert queued.message_id == status(good).message_id
    assert queued.recipients["b@x.test"].status == "queued"
    envelope = queue.form["transactions"][0]["envelope"]
    assert queued.idempotency_key == envelope["idempotency_key"]


def test_a_cancelled_message_is_not_queued(queue: Queue) -> None:
    with receiver(pre_send, raising(AnymailCancelSend, "bob@example.org")):
        assert queue.send(mail("bob@example.org")) == 0
    assert queue.tasks == []
    assert queue.failed == []


def test_a_task_backend_that_fails_leaves_the_message_unknown(queue: Queue) -> None:
    message = mail("Bob@Example.org")
    reported: list[object] = []
    with (
        receiver(post_send, lambda **found: reported.append(found)),
        pytest.raises(EnqueueFailed, match=r"'dummy'.*ConnectionError") as caught,
    ):
        Failing().send_messages([message])
    error = caught.value
    assert isinstance(error.__cause__, ConnectionError)
    assert not error.retry_safe
    [result] = error.results
    assert result.outcome is UNKNOWN
    assert [each.status for each in result.recipients.values()] == ["unknown"]
    assert queue.failed == [(message, result, error)]
    assert error.result is status(message).esp_response is result
    assert status(message).status == {"unknown"}
    assert status(message).message_id == result.message_id is not None
    assert reported == []


def test_a_message_whose_task_was_stored_without_an_answer_is_sent_once(
    queue: ServedQueue,
) -> None:
    sender = Failing(stores=True, fail_silently=True)
    assert sender.send_messages([mail("bob@example.org")]) == 0
    queue.run()
    [(_, failed, _)] = queue.failed
    [(_, sent)] = queue.sent
    assert failed.outcome is UNKNOWN
    assert failed.idempotency_key == sent.idempotency_key
    assert queue.server.delivered == {"bob@example.org": 1}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("on_commit", [False, True])
def test_a_message_of_which_some_tasks_are_taken_ends_unknown_and_once(
    queue: Queue, *, on_commit: bool
) -> None:
    sender = Failing(at=2, fail_silently=True, on_commit=on_commit)
    message = merged("a@x.test", "b@x.test", "c@x.test", cc=["carol@x.test"])
    with transaction.atomic():
        assert sender.send_messages([message]) == 1
    assert len(queue.tasks) == 1
    [(failed, result, error)] = queue.failed
    assert failed is message
    assert isinstance(error, EnqueueFailed)
    assert result.outcome is UNKNOWN
    expected = {
        "a@x.test": "queued",
        "b@x.test": "unknown",
        "c@x.test": "failed",
        "carol@x.test": "unknown",
    }
    for recipients in (result.recipients, message.anymail_status.recipients):
        assert {who: each.status for who, each in recipients.items()} == expected


def test_an_interrupt_while_queueing_ends_every_message(queue: Queue) -> None:
    messages = mails(4)
    with pytest.raises(KeyboardInterrupt):
        Failing(at=2, error=KeyboardInterrupt).send_messages(messages)
    assert [(message, result.outcome) for message, result, _ in queue.failed] == [
        (messages[1], UNKNOWN),
        (messages[2], NOT_SENT),
        (messages[3], NOT_SENT),
    ]


def test_an_interrupt_while_preparing_ends_the_messages_of_a_list(queue: Queue) -> None:
    messages = mails(3)
    with receiver(pre_send, raising(SystemExit, "2@example.org")):
        with pytest.raises(SystemExit):
            tasks.EmailBackend().send_messages(messages)
        with pytest.raises(SystemExit):
            tasks.EmailBackend().send_messages(iter(messages))
    assert [message for message, *_ in queue.failed] == messages[1:]
    assert [message.to for message, _ in queue.sent] == [["1@example.org"]] * 2


def test_an_error_of_a_pre_send_receiver_is_raised_after_earlier_messages_are_queued(
    queue: Queue,
) -> None:
    with (
        receiver(pre_send, raising(ZeroDivisionError, "2@example.org")),
        pytest.raises(ZeroDivisionError),
    ):
        queue.send(*mails(3))
    assert len(queue.tasks) == 1
    assert queue.failed == []


# -- transactions of the database ------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("on_commit", "rolled_back", "counts"),
    [(False, False, (1, 1)), (True, False, (0, 1)), (True, True, (0, 0))],
)
def test_on_commit_queues_if_the_transaction_is_committed(
    queue: Queue, counts: tuple[int, int], *, on_commit: bool, rolled_back: bool
) -> None:
    message = mail()
    with transaction.atomic():
        assert queue.send(message, on_commit=on_commit) == 1
        inside = len(queue.tasks)
        assert status(message).status == {"queued"}
        transaction.set_rollback(rolled_back)
    assert (inside, len(queue.tasks)) == counts


@pytest.mark.django_db(transaction=True)
def test_a_failure_after_the_commit_is_reported_and_the_rest_goes_on(
    queue: Queue,
) -> None:
    first, second = mail("a@x.test"), mail("b@x.test")
    others: list[str] = []
    with transaction.atomic():
        sender = Failing(on_commit=True)
        assert sender.send_messages([first, second]) == 2
        transaction.on_commit(lambda: others.append("ran"))
        assert queue.failed == []
    [(message, result, error)] = queue.failed
    assert message is first
    assert isinstance(error, EnqueueFailed)
    assert error.result is result
    assert result.outcome is UNKNOWN
    assert status(first).status == {"unknown"}
    assert status(second).status == {"queued"}
    assert len(queue.tasks) == 1
    assert others == ["ran"]


# -- options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"task_backend": "none"}, "`task_backend`"),
        ({"queue_name": "none"}, "`queue_name`"),
        ({"priority": 101}, "from -100 to 100"),
        ({"using": "away"}, "'away', which is not in MAILERS"),
        ({"alias": "default"}, "needs the option `using`"),
        ({"alias": "default", "using": "default"}, "this mailer itself"),
    ],
)
def test_a_wrong_option_is_refused(
    server: FaultServer, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=problem):
        tasks.EmailBackend(**{"task_backend": "dummy", **options})


def test_the_last_attempt_ends_before_the_relay_forgets_the_key(
    queue: ServedQueue,
) -> None:
    with settings_for(queue.server, deadline=3600):
        queue.send(mail())
    left = queue.form["give_up_at"] - time.time()
    assert left == pytest.approx(23 * 3600, abs=60)


def test_a_deadline_that_outlives_the_key_is_refused(server: FaultServer) -> None:
    with (
        settings_for(server, deadline=86_400),
        pytest.raises(ImproperlyConfigured, match="`deadline` of 86400 s"),
    ):
        tasks.EmailBackend()


if MAILERS_EXIST:
    from django.core.mail import InvalidMailer

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
        queue: ServedQueue,
    ) -> None:
        mail("bob@example.org").send()
        assert queue.form["using"] == "relay"
        queue.run()
        assert queue.server.delivered == {"bob@example.org": 1}

    @pytest.mark.usefixtures("mailers_in_use")
    @pytest.mark.parametrize(
        "using", ["circle", "other", "missing", "mistyped", "function"]
    )
    def test_a_mailer_of_another_kind_is_refused(using: str) -> None:
        problem = f"`using` is '{using}': its BACKEND must be {SENDS}"
        with pytest.raises(InvalidMailer, match=problem):
            tasks.EmailBackend(using=using, alias="queue")
