"""What is said before login: each step within the timeout, each failure worded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from django_lettermint.exceptions import ConnectFailed, LettermintError
from django_lettermint.results import Phase

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig

    from .pipeline import Trace
    from .replies import Reply
    from .stream import Wire

_T = TypeVar("_T")

#: Steps that are more than connecting.
_PHASES = {"TLS": Phase.TLS, "STARTTLS": Phase.TLS, "AUTH": Phase.AUTH}


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps to a session; they end before `until` (monotonic) or fail."""

    config: RelayConfig
    until: float
    trace: Trace

    @property
    def where(self) -> str:
        """Return the relay as errors name it."""
        return f"{self.config.endpoint.host}:{self.config.endpoint.port}"

    def take(self, step: str, act: Callable[[float], _T], advice: str) -> _T:
        """Act within the timeout; turn what breaks into ConnectFailed.

        The frames below may hold credentials, and errors carry their frames along, to
        debug pages for one: all leave without their traceback, interrupts too.
        """
        until = min(self.until, time.monotonic() + self.config.timeout)
        try:
            return act(until)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure = error.with_traceback(None)
        if isinstance(failure, LettermintError) or not isinstance(failure, OSError):
            raise failure
        raise self._failed(step, _reason(failure), advice)

    def refused(self, step: str, reply: Reply) -> NoReturn:
        """Raise ConnectFailed for a relay that said no."""
        error = self._named(step, f"was refused: {reply}. Nothing was sent")
        # A site's refusal may heal, but not within a second: 5yz is reported at once.
        error.redial = reply.code < 500
        error.with_reply(reply.code, reply.text).transient = True
        raise error

    def fail(self, step: str, reason: str) -> NoReturn:
        """Raise ConnectFailed for a relay that makes no sense."""
        raise self._failed(step, reason, "try again later")

    def _failed(self, step: str, reason: str, advice: str) -> ConnectFailed:
        return self._named(step, f"failed: {reason}. Nothing was sent; {advice}")

    def _named(self, step: str, what: str) -> ConnectFailed:
        error = ConnectFailed(f"{step} on {self.where} {what}")
        error.step, error.phase = step, _PHASES.get(step, Phase.CONNECT)
        return error


class Talk:
    """Commands and replies on a wire, one at a time."""

    def __init__(self, steps: Steps, wire: Wire) -> None:
        self.steps = steps
        self.wire = wire
        # A relay may know the login from an earlier connection, and greet with it.
        token, username = steps.config.endpoint.token, steps.config.endpoint.username
        wire.hide(token.encoded(f"\0{username}\0"), token.encoded(), token)

    def ask(self, step: str, line: str | Callable[[], str]) -> Reply:
        """Say a line and return the reply; a secret line is made at the last moment."""

        def write(until: float) -> None:
            text = line() if callable(line) else line
            self.wire.write(text.encode("ascii") + b"\r\n", until)

        self.steps.take(step, write, "try again later")
        return self.reply(step)

    def reply(self, step: str) -> Reply:
        """Return the next reply."""
        return self.steps.take(
            step, self.wire.read_reply, "are `host` and `port` an SMTP relay's?"
        )


def _reason(failure: OSError) -> str:
    if isinstance(failure, TimeoutError):
        return "timed out"
    return failure.strerror or str(failure) or type(failure).__name__
