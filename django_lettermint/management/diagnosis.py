"""Send one mail to the relay, step by step, with the time of each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from anymail.exceptions import AnymailCancelSend, AnymailError

from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    LettermintError,
    LettermintInvalidMessage,
    TLSFailed,
)
from django_lettermint.outgoing import notify
from django_lettermint.results import Phase
from django_lettermint.smtp import RelayState, connect

from .next_steps import Failed, brief

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from django_lettermint.backend import EmailBackend
    from django_lettermint.conf import RelayConfig
    from django_lettermint.delivery import Submission
    from django_lettermint.outgoing import OutgoingMessage
    from django_lettermint.results import SendResult
    from django_lettermint.smtp import Session

_PHASES = {
    Phase.MESSAGE: "message",
    Phase.MAIL: "MAIL",
    Phase.RCPT: "RCPT",
    Phase.DATA: "DATA",
    Phase.CONTENT: "DATA",
    Phase.COMMIT: "reply",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step, and the seconds since the one before it ended."""

    name: str
    ok: bool
    seconds: float
    detail: str


class Diagnosis:
    """Sends a mail over a connection outside of the pool and shows each step.

    The methods raise Failed.
    """

    def __init__(self, config: RelayConfig, show: Callable[[Step], None]) -> None:
        # Without them, each command has a reply and a time.
        self._config = replace(config, pipelining=False, chunking=False)
        self._show = show
        self._steps: list[Step] = []
        self._since = time.monotonic()

    def check(self) -> None:
        """Log in and send NOOP, without a mail."""
        try:
            session = self._connect()
        except LettermintError as error:
            raise self._failed(error) from None
        try:
            alive = session.ping(self._config.timeout)
            self._add_step("NOOP", "250" if alive else "no 250", ok=alive)
        finally:
            self._quit(session)
        if not alive:
            raise Failed(ConnectionLost("NOOP was not answered by 250"), "NOOP")

    def send(self, backend: EmailBackend, message: EmailMessage) -> SendResult:
        """Send a message and report it like any other: log, status, signals."""
        outgoing = _prepare(backend, message)
        try:
            if outgoing.submissions:
                self._send(outgoing.submissions)
        finally:
            notify(type(backend), outgoing, self._config.endpoint)
        if outgoing.error:
            raise self._failed(outgoing.error)
        return _result(message)

    def _failed(self, error: Exception) -> Failed:
        step = self._steps[-1].name if self._steps else "message"
        return Failed(error, step, tenant=self._config.endpoint.tenant)

    def _send(self, submissions: Iterable[Submission]) -> None:
        try:
            session = self._connect()
        except LettermintError as error:
            for submission in submissions:
                submission.attempts += 1
                submission.fail(error)
            return
        try:
            for submission in submissions:
                self._send_one(session, submission)
        finally:
            self._quit(session)

    def _send_one(self, session: Session, submission: Submission) -> None:
        transaction = submission.begin()
        transaction.until = time.monotonic() + submission.deadline.seconds_left()
        try:
            session.send(transaction, config=self._config)
        finally:
            # Never try again: that would hide the failure.
            submission.interrupt(transaction)
        if transaction.failure and self._steps[-1].ok:
            self._add_step(
                _PHASES[transaction.phase], str(transaction.failure), ok=False
            )

    def _connect(self) -> Session:
        self._since = time.monotonic()
        until = self._since + self._config.deadline
        try:
            return connect(
                self._config.endpoint,
                RelayState(),
                until=until,
                timeout=self._config.timeout,
                trace=self._trace,
            )
        except (ConnectFailed, TLSFailed, AuthenticationFailed) as error:
            self._add_step(error.step, brief(error), ok=False)
            raise

    def _quit(self, session: Session) -> None:
        session.send_quit()
        session.wait_closed(time.monotonic() + 1.0)

    def _trace(self, step: str, detail: str) -> None:
        verb, _, argument = step.partition(" ")
        if verb in ("MAIL", "RCPT"):
            self._add_step(verb, f"{argument} → {detail}", ok=detail[0] not in "45")
        elif verb in ("DATA", "."):
            name = "DATA" if verb == "DATA" else "reply"
            self._add_step(name, detail, ok=detail[0] not in "45")
        else:
            self._add_step(step, detail)

    def _add_step(self, name: str, detail: str, *, ok: bool = True) -> None:
        now = time.monotonic()
        step = Step(
            name=name, ok=ok, seconds=round(now - self._since, 6), detail=detail
        )
        self._since = now
        self._steps.append(step)
        self._show(step)


def send_through_pool(
    backend: EmailBackend, messages: Iterable[EmailMessage]
) -> Iterator[SendResult]:
    """Send one message at a time as an application does; raise Failed at the first error."""
    # The option is for applications: this command shows every error.
    backend.fail_silently = False
    for message in messages:
        try:
            backend.send_messages([message])
        except Exception as error:  # noqa: BLE001 - a receiver's, if not ours
            result: SendResult | None = getattr(error, "result", None)
            phase = result.phase if result else "message"
            raise Failed(error, phase, tenant=backend.tenant) from None
        yield _result(message)


def _prepare(backend: EmailBackend, message: EmailMessage) -> OutgoingMessage:
    try:
        return backend.prepare(message)
    except Exception as error:  # noqa: BLE001 - a pre_send receiver's
        raise Failed(error, "message") from None


def _result(message: EmailMessage) -> SendResult:
    """Return the result of a message; raise Failed if it was not tried."""
    result: SendResult = message.anymail_status.esp_response  # type: ignore[attr-defined] # set by notify()
    reasons: dict[Phase, AnymailError] = {
        Phase.NO_RECIPIENTS: LettermintInvalidMessage("the mail has no recipient"),
        Phase.CANCELLED: AnymailCancelSend("a pre_send receiver cancelled the mail"),
    }
    if result.phase in reasons:
        raise Failed(reasons[result.phase], "message")
    return result
