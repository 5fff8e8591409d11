"""A local SMTP relay that behaves as Lettermint documents."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from .certificates import Certificates
from .ledger import Ledger
from .listeners import Listeners
from .loop_thread import PATIENCE, LoopThread
from .policy import DEFAULT_FEATURES, KEYWORDS, Policy
from .subscriptions import Webhooks

if TYPE_CHECKING:
    from .records import Logins, ReceivedMessage, Statistics


class Relay:
    """A real server on 127.0.0.1, with one port for implicit TLS and one for STARTTLS.

        with Relay() as relay, override_settings(ANYMAIL=relay.settings()):
            send_mail(...)
            (message,) = relay.messages

    It reads messages and enforces limits as Lettermint's documentation says. Where the
    documentation is silent, the relay chooses:

    - Replies: 535 5.7.8 for a wrong token, 530 5.7.0 for anything before TLS or AUTH,
      452 4.5.3 for the 51st recipient, 552 5.3.4 above 25 MB (26,214,400 octets, told by
      SIZE or found in the content), 550 5.6.0 after the content for a header that breaks
      a rule, 250 2.0.0 with an id of the relay's own for a message that is accepted.
    - Any route slug is taken: letters, digits, `_` and `-`, at most 255.
    - A header that occurs twice is refused, as is a metadata header without a key. One
      whose key has a blank in it is no header line, and is ignored. X-Tag next to
      X-LM-Tag is not looked at. Empty metadata values are taken.
    - Header values are unfolded and RFC 2047 words decoded.
    - Idempotency keys are kept per token for the life of the relay, with a hash of the
      content as received; recipients do not count. Same key and content: the first
      reply again, nothing delivered. Other content: 554 5.5.0. First one still in
      progress: 451 4.5.0. A refused message uses up no key.
    - A complete message is worked on to the end, even if its client goes away meanwhile.
    - EHLO offers PIPELINING, SIZE, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES and AUTH, not
      CHUNKING. BDAT LAST ends its transaction even when it is refused.
    - Lines above 998 octets are refused with 500, bare CR and LF are taken as they are.
    - No suppression list, no sender verification, no limit of rate or messages.
    """

    def __init__(
        self,
        token: str = "lm_test_token",  # noqa: S107
        *,
        other_tokens: Sequence[str] = (),
        chunking: bool = False,
        without: Collection[str] = (),
        mechanisms: Sequence[str] = ("PLAIN", "LOGIN", "CRAM-MD5"),
        limits: str = "",
        max_size: int = 25 * 1024 * 1024,
        idle_timeout: float = 300.0,
        think_time: float = 0.0,
        keep_messages: bool = True,
    ) -> None:
        """Prepare a relay; nothing listens before start().

        `without` names EHLO keywords to leave out, `limits` are parameters for the LIMITS
        keyword (RFC 9422), `think_time` is in seconds before each final reply, and
        `keep_messages=False` counts messages without keeping them.
        """
        unknown = set(without) - KEYWORDS
        if unknown:
            raise ValueError(
                f"without: {', '.join(sorted(unknown))}: no such EHLO keyword."
            )
        offered = {"CHUNKING"} if chunking else set()
        if limits:
            offered.add("LIMITS")
        policy = Policy(
            tokens=(token, *other_tokens),
            mechanisms=tuple(mechanisms),
            features=(DEFAULT_FEATURES | offered) - set(without),
            limits=limits,
            max_size=max_size,
            idle_timeout=idle_timeout,
        )
        self.token = token
        self._certificates = Certificates()
        self._ledger = Ledger(policy, keep=keep_messages)
        self._ledger.think_time = think_time
        self._listeners = Listeners(policy, self._ledger, self._certificates.context)
        #: Webhooks for what it received: `post()` and `subscribe()`.
        self.webhooks = Webhooks(self._ledger)
        self._thread = LoopThread(self._listeners)

    # Life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; after a stop() on the same ports as before."""
        self._thread.start()
        self._certificates.write()

    def stop(self) -> None:
        """Close everything; messages and statistics stay readable."""
        self._thread.stop()
        self.webhooks.stop(PATIENCE)
        self._certificates.remove()

    def drop_connections(self) -> None:
        """Cut every connection without a word; new ones are welcome."""
        self._thread.run(self._listeners.drop())

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Refuse and cut all connections inside the block, and listen again behind it."""
        self._thread.run(self._listeners.close())
        try:
            yield
        finally:
            self._thread.run(self._listeners.open())

    # How to reach it

    def port(self, security: str) -> int:
        """Return the port for "tls" or "starttls"."""
        return self._listeners.ports[security]

    @property
    def ca_file(self) -> str:
        """The path of the certificate to trust; removed by stop()."""
        return self._certificates.ca_file

    def options(self, security: str = "tls", **overrides: object) -> dict[str, object]:
        """Return the options with which the backend reaches this relay."""
        return {
            "api_token": self.token,
            "host": "127.0.0.1",
            "port": self.port(security),
            "security": security,
            "ca_file": self.ca_file,
            "idempotency": True,
        } | overrides

    def settings(self, security: str = "tls", **overrides: object) -> dict[str, object]:
        """Return the same as options() for the setting ANYMAIL, or as bare settings."""
        options = self.options(security, **overrides)
        return {f"LETTERMINT_{name.upper()}": value for name, value in options.items()}

    # What it saw

    @property
    def messages(self) -> list[ReceivedMessage]:
        """The messages delivered since the last clear(), in order."""
        with self._ledger.changed:
            return list(self._ledger.messages)

    @property
    def logins(self) -> Logins:
        """The logins tried so far."""
        return self._ledger.logins

    @property
    def statistics(self) -> Statistics:
        """The counters at this moment."""
        return self._ledger.statistics()

    def clear(self) -> None:
        """Forget the messages; counters and idempotency keys stay."""
        self._ledger.clear()

    def wait_for(self, count: int, timeout: float = 5.0) -> list[ReceivedMessage]:
        """Return the messages as soon as there are `count`; raises TimeoutError."""
        self.wait_until(lambda _: len(self._ledger.messages) >= count, timeout)
        return self.messages

    def wait_until(
        self, true: Callable[[Statistics], bool], timeout: float = 5.0
    ) -> Statistics:
        """Wait until the statistics satisfy `true`; raises TimeoutError.

        Looked at whenever a connection, a message or its answer comes or goes.
        """
        changed = self._ledger.changed
        with changed:
            if not changed.wait_for(lambda: true(self.statistics), timeout):
                raise TimeoutError(f"Not so within {timeout} s: {self.statistics}")
            return self.statistics

    # What it shall do

    @property
    def think_time(self) -> float:
        """Seconds between the end of a message and the reply to it."""
        return self._ledger.think_time

    @think_time.setter
    def think_time(self, seconds: float) -> None:
        self._ledger.think_time = seconds

    def refuse(
        self,
        address: str,
        code: int = 550,
        text: str = "5.1.1 No such mailbox",
        verb: str = "RCPT",
    ) -> None:
        """Refuse an address from now on, as a recipient or (`verb="MAIL"`) as a sender."""
        self._ledger.refusals[verb, address.casefold()] = f"{code} {text}"

    def accept(self, address: str, verb: str = "RCPT") -> None:
        """Take a refusal back."""
        self._ledger.refusals.pop((verb, address.casefold()), None)

    def lose_replies(self, count: int = 1) -> None:
        """Cut the connection instead of the next `count` final replies."""
        self._ledger.replies_to_lose = count
