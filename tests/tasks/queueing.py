"""A queue whose worker runs when a test calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from django.test import override_settings

from django_lettermint.send_task import send
from django_lettermint.tasks import EmailBackend

if TYPE_CHECKING:
    from django.core.mail import EmailMessage
    from django.tasks import TaskContext, TaskResult, task_backends
    from django.tasks.backends.dummy import DummyBackend as Dummy

    from tests.faultserver import FaultServer
    from tests.sending import Heard
else:
    try:
        from django.tasks import TaskContext, task_backends
    except ImportError:
        from django_tasks import TaskContext, task_backends


class Queue:
    """The tasks of a dummy backend, and the signals that their messages end with."""

    def __init__(self, heard: Heard) -> None:
        self.sent, self.failed = heard.sent, heard.failed
        self._backend = cast("Dummy", task_backends["dummy"])
        self._backend.clear()

    @property
    def tasks(self) -> list[TaskResult[Any, Any]]:
        """Return the tasks that wait, oldest first."""
        return self._backend.results

    @property
    def form(self) -> dict[str, Any]:
        """Return the JSON form of the only message that waits."""
        [only] = self.tasks
        form: dict[str, Any] = only.args[0]
        return form

    def send(self, *messages: EmailMessage, **options: Any) -> int:
        """Send messages by the queueing backend."""
        sender = EmailBackend(task_backend="dummy", **options)
        return sender.send_messages(messages)

    def run(self, *, attempt: int = 1) -> str:
        """Run the oldest task as a worker does; return the outcome."""
        result = self.tasks.pop(0)
        result.worker_ids.extend(f"worker-{number}" for number in range(attempt))
        returned = send.func(TaskContext(task_result=result), *result.args)
        return str(returned["outcome"])

    def run_all(self) -> list[str]:
        """Run all tasks, those included that they put back; return the outcomes."""
        outcomes = []
        while self.tasks:
            outcomes.append(self.run())
        return outcomes


class ServedQueue(Queue):
    """A queue, and the server that its worker sends to."""

    def __init__(self, server: FaultServer, heard: Heard) -> None:
        super().__init__(heard)
        self.server = server


@contextmanager
def settings_for(server: FaultServer, **options: Any) -> Iterator[None]:
    """Let settings name this server."""
    given = server.options(**options).items()
    with override_settings(**{f"LETTERMINT_{name.upper()}": at for name, at in given}):
        yield
