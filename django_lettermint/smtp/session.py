"""One SMTP session after login: messages one after the other, their point of no return."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .pipeline import Pipeline, Trace, untraced
from .transfer import ChunkTransfer, DataTransfer

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig

    from .attempt import Attempt
    from .stream import Wire

_MAIL_MAX = re.compile(r"(?i:\bMAILMAX=)([0-9]{1,9})(?!\S)")


class Session:
    """An authenticated connection on which messages are sent one after the other."""

    def __init__(
        self,
        wire: Wire,
        features: Mapping[str, str],
        config: RelayConfig,
        *,
        trace: Trace = untraced,
    ) -> None:
        self.features = features
        self._wire = wire
        self._pipeline = Pipeline(wire, config, trace)
        self._transfer = self._new_transfer(config)
        #: Never becomes False again; every error leads here.
        self.closed = False

    def use(self, config: RelayConfig) -> None:
        """Hold to the timeouts and options of the mailer that sends next."""
        self._pipeline.config = config
        begun = self._transfer.begun
        self._transfer = self._new_transfer(config)
        self._transfer.begun = begun

    def _new_transfer(self, config: RelayConfig) -> DataTransfer | ChunkTransfer:
        chunking = config.chunking and "CHUNKING" in self.features
        return (ChunkTransfer if chunking else DataTransfer)(
            self._pipeline,
            self.features,
            pipelining=config.pipelining and "PIPELINING" in self.features,
        )

    @property
    def messages(self) -> int:
        """Return the number of transactions begun."""
        return self._transfer.begun

    @property
    def needs_rset(self) -> bool:
        """Return whether RSET must go ahead of the next message."""
        return self._pipeline.dirty

    @property
    def reusable(self) -> bool:
        """Return whether client and server are in step, between two messages."""
        return not self.closed and not self._pipeline.waits

    @property
    def mail_max(self) -> int | None:
        """Return the server's limit of messages a connection (RFC 9422)."""
        limit = _MAIL_MAX.search(self.features.get("LIMITS", ""))
        return int(limit[1]) if limit else None

    def send(self, attempt: Attempt, following: Sequence[Attempt] = ()) -> None:
        """Send a message and fill in the attempt.

        To save round trips, parts of the `following` ones may go out behind it; they
        must then be sent next, in this order. A broken connection ends up in the
        `failure` of each message that waits for a reply; interrupts propagate. Both
        close the session.
        """
        self._pipeline.until = attempt.until
        try:
            self._transfer.send(attempt, following)
        except OSError as error:
            self.close()
            self._pipeline.fail(attempt, error)
        except BaseException:
            self.close()
            raise

    def alive(self) -> bool:
        """Look, without a round trip, whether the server is there and silent."""
        return not self.closed and not self._wire.has_input()

    def ping(self, seconds: float) -> bool:
        """Ask for a sign of life: exactly 250, with no 421 queued behind it."""
        until = time.monotonic() + seconds
        try:
            self._wire.write(b"NOOP\r\n", until)
            return self._wire.read_reply(until).code == 250 and self.alive()
        except OSError:
            return False

    def send_quit(self) -> None:
        """Write QUIT, as far as that takes no waiting."""
        try:
            self._wire.write(b"QUIT\r\n", time.monotonic() + 0.1)
        except OSError:
            self.close()

    def wait_closed(self, until: float) -> None:
        """Wait for the server to leave, at most until then (monotonic), and close."""
        try:
            if not self.closed:
                self._wire.read_reply(until)
        except OSError:
            pass  # many servers hang up without a word
        finally:
            self.close()

    def close(self) -> None:
        """Close hard: no further octet is written."""
        self.closed = True
        self._wire.close()
