"""A connection on loan: what a pool asks of it, and what the pool knows about it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from django_lettermint.conf import PoolConfig

#: Lifetimes are shortened by up to this share, so that they do not all end together.
LIFETIME_JITTER = 0.1
#: Seconds for the server to take note that connections end.
GOODBYE_TIMEOUT = 0.5


class Connection(Protocol):
    """What the pool asks of a connection; `smtp.Session` is one."""

    @property
    def messages(self) -> int:
        """Return the number of messages begun so far."""

    @property
    def dirty(self) -> bool:
        """Return whether the next message must begin with a reset."""

    @property
    def reusable(self) -> bool:
        """Return whether it is open and owes no reply; without I/O."""

    @property
    def mail_max(self) -> int | None:
        """Return the server's limit of messages a connection; without I/O."""

    def alive(self) -> bool:
        """Look whether the server is there and silent; without waiting."""

    def ping(self, seconds: float) -> bool:
        """Ask the server for a sign of life."""

    def say_goodbye(self) -> None:
        """Announce the end; without waiting."""

    def await_goodbye(self, until: float) -> None:
        """Wait for the answer to that until a moment of `time.monotonic()`, and close."""

    def close(self) -> None:
        """Close without a further octet, in a forked process as well."""


C = TypeVar("C", bound=Connection)


@dataclass(slots=True, eq=False)
class Lease(Generic[C]):
    """A connection of a pool; whoever leases it has it to itself."""

    connection: C
    #: The pool's clock when the connection is too old to be lent again.
    expires_at: float
    #: Messages after which it is not lent again.
    max_messages: float
    #: Idle seconds after which it is not lent again.
    max_idle: float
    #: The pool's clock when it was dialled or parked last.
    idle_since: float
    #: It was parked before: the server may have closed it unnoticed.
    reused: bool = False
    #: Its messages that the pool's statistics contain.
    counted: int = 0

    @classmethod
    def begin(cls, connection: C, config: PoolConfig, now: float) -> Self:
        """Return the lease of a new connection, with the limits that hold for it."""
        jitter = 1 - LIFETIME_JITTER * random.random()  # noqa: S311
        limits = filter(None, (config.max_messages, connection.mail_max))
        return cls(
            connection,
            expires_at=now + config.max_lifetime * jitter,
            max_messages=min(limits, default=float("inf")),
            max_idle=config.max_idle,
            idle_since=now,
        )

    def limit_reached(self, now: float) -> str:
        """Return the limit after which it is not lent again, or an empty string."""
        if now >= self.expires_at:
            return "lifetime"
        if self.connection.messages >= self.max_messages:
            return "messages"
        return "idle" if now - self.idle_since >= self.max_idle else ""

    def count_messages(self) -> int:
        """Return how many messages it carried since the last call."""
        counted, self.counted = self.counted, self.connection.messages
        return self.counted - counted

    def dismiss(self, until: float) -> None:
        """Close the connection; if the server is there and in step, say goodbye first.

        Waits for the server to do so, too, at most until a moment of `time.monotonic()`.
        """
        connection = self.connection
        try:
            if connection.reusable and connection.alive():
                connection.say_goodbye()
                connection.await_goodbye(until)
        finally:
            connection.close()
