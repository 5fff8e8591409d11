"""Queues for tests: settings, and a worker that runs when the test wants it to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from django.test import override_settings

from django_lettermint.send_task import send
from django_lettermint.tasks import EmailBackend

if TYPE_CHECKING:
    from django.tasks import TaskContext, TaskResult, task_backends
    from django.tasks.backends.dummy import DummyBackend as Dummy

    from tests.faultserver import FaultServer
else:
    try:
        from django.tasks import TaskContext, task_backends
        from django.tasks.backends.dummy import DummyBackend as Dummy
    except ImportError:
        from django_tasks import TaskContext, task_backends
        from django_tasks.backends.dummy import DummyBackend as Dummy


class BrokenBackend(Dummy):
    """Takes the first `takes` tasks, and no more."""

    takes = 0

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        if len(self.results) < self.takes:
            return super().enqueue(task, args, kwargs)
        raise ConnectionError("the broker is away")


class Queue:
    """The tasks of the dummy backend; `run()` works like a worker."""

    def __init__(self, alias: str = "dummy") -> None:
        self._backend = cast("Dummy", task_backends[alias])
        self._backend.clear()

    @property
    def tasks(self) -> list[TaskResult[Any, Any]]:
        """Return what waits, oldest first."""
        return self._backend.results

    @property
    def form(self) -> dict[str, Any]:
        """Return the JSON form of the only message that waits."""
        [only] = self.tasks
        form: dict[str, Any] = only.args[0]
        return form

    def run(self, *, attempt: int = 1) -> Any:
        """Run the oldest task, and return what it returns."""
        result = self.tasks.pop(0)
        result.worker_ids.extend(f"worker-{number}" for number in range(attempt))
        return send.func(TaskContext(task_result=result), *result.args)

    def run_to_the_end(self) -> list[str]:
        """Run all tasks, those included that they put back; return the outcomes."""
        outcomes = []
        while self.tasks:
            outcomes.append(self.run()["outcome"])
        return outcomes


@contextmanager
def settings_for(server: FaultServer, **options: Any) -> Iterator[None]:
    """Let settings name this server."""
    given = server.options(**options).items()
    with override_settings(**{f"LETTERMINT_{name.upper()}": at for name, at in given}):
        yield


def queueing(**options: Any) -> EmailBackend:
    """Return a queueing backend over the dummy task backend."""
    return EmailBackend(**{"task_backend": "dummy", **options})
