"""What a relay offers and enforces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

KEYWORDS = frozenset(
    {
        "8BITMIME",
        "AUTH",
        "CHUNKING",
        "ENHANCEDSTATUSCODES",
        "LIMITS",
        "PIPELINING",
        "SIZE",
        "SMTPUTF8",
        "STARTTLS",
    }
)
DEFAULT_FEATURES = KEYWORDS - {"CHUNKING", "LIMITS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The behaviour of one relay; the defaults are what Lettermint documents."""

    #: Project tokens that may log in; each has its own idempotency keys.
    tokens: tuple[str, ...]
    username: str = "lettermint"
    mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN", "CRAM-MD5")
    #: EHLO keywords that are offered.
    features: frozenset[str] = DEFAULT_FEATURES
    #: Parameters of the LIMITS keyword (RFC 9422), which are only announced.
    limits: str = ""
    #: Octets of a message.
    max_size: int = 25 * 1024 * 1024
    #: Recipients of a transaction.
    max_recipients: int = 50
    #: Seconds after which a silent connection is closed.
    idle_timeout: float = 300.0

    def ehlo(self, *, secure: bool) -> Iterator[str]:
        """Yield the keywords to offer, with their parameters."""
        lines = {
            "PIPELINING": "PIPELINING",
            "SIZE": f"SIZE {self.max_size}",
            "8BITMIME": "8BITMIME",
            "SMTPUTF8": "SMTPUTF8",
            "ENHANCEDSTATUSCODES": "ENHANCEDSTATUSCODES",
            "CHUNKING": "CHUNKING",
            "LIMITS": f"LIMITS {self.limits}",
            # No credentials may be asked for in clear (RFC 4954 section 4), and a second
            # STARTTLS makes no sense (RFC 3207 section 4.2).
            "AUTH" if secure else "": f"AUTH {' '.join(self.mechanisms)}",
            "" if secure else "STARTTLS": "STARTTLS",
        }
        return (line for keyword, line in lines.items() if keyword in self.features)
