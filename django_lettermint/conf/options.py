"""Every option: its name, default, rule and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from . import validators as rules
from .send_defaults import send_defaults
from .suggestions import unknown
from .validators import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """How connections are shared and kept; times are seconds."""

    max_size: int = 4
    timeout: float = 10.0
    max_waiting: int = 0
    max_idle: float = 45.0
    max_lifetime: float = 300.0
    max_messages: int = 100
    ping_after: float | None = 20.0


def _pool(value: object) -> PoolConfig | None:
    """Accept True, a dict, or False, which is returned as None."""
    if isinstance(value, bool):
        return PoolConfig() if value else None
    if not isinstance(value, Mapping):
        raise rules.wrong("True, False or a dict", value)
    parsed = {}
    for name, item in value.items():
        if name not in POOL_OPTIONS:
            raise unknown(name, POOL_OPTIONS)
        option = POOL_OPTIONS[name]
        try:
            parsed[name] = option.rule(item)
        except rules.Invalid as invalid:
            key = f"[{name!r}]"
            raise rules.Invalid(str(invalid), key=key, remedy=option.remedy) from None
    return PoolConfig(**parsed)


def _table(*options: Option) -> Mapping[str, Option]:
    return MappingProxyType({option.name: option for option in options})


OPTIONS = _table(
    Option(
        "api_token",
        rules.secret,
        default=None,
        required=True,
        doc="The project's sending token; it is the SMTP password.",
    ),
    Option("host", rules.host, default="smtp.lettermint.co", doc="The relay."),
    Option(
        "port",
        rules.whole(1, 65535),
        default=465,
        doc="25, 587, 2525, 2465, 2587 (STARTTLS) or 465 (TLS from the first byte); "
        "any other needs `security`.",
    ),
    Option(
        "security",
        rules.optional(rules.one_of("tls", "starttls", "plaintext")),
        default=None,
        doc='`"tls"`, `"starttls"`, or `"plaintext"` (loopback hosts only); '
        "`None`: by the port.",
    ),
    Option("username", rules.word, default="lettermint", doc="The SMTP user name."),
    Option(
        "auth_mechanism",
        rules.optional(rules.one_of("PLAIN", "LOGIN", "CRAM-MD5")),
        default=None,
        doc='`"PLAIN"`, `"LOGIN"` or `"CRAM-MD5"`; '
        "`None`: the first of these that the server offers.",
    ),
    Option(
        "ca_file",
        rules.optional(rules.ca_file),
        default=None,
        doc="A PEM file of further certificate authorities, for a private relay.",
    ),
    Option(
        "local_hostname",
        rules.optional(rules.ehlo_name),
        default=None,
        doc="The name given at EHLO; `None`: this machine's full name.",
    ),
    Option(
        "timeout",
        rules.seconds,
        default=10,
        doc="Seconds to connect, and for each reply.",
    ),
    Option(
        "final_reply_timeout",
        rules.seconds,
        default=60,
        doc="Seconds for the reply to a message.",
    ),
    Option(
        "deadline",
        rules.seconds,
        default=120,
        doc="Seconds for a message, retries included.",
    ),
    Option(
        "retries",
        rules.whole(0),
        default=8,
        doc="Further attempts when no connection can be made or a new one is lost: with "
        "growing pauses, for 2 seconds, or for 10 with the mails of a list.",
    ),
    Option(
        "pool",
        _pool,
        default=True,
        doc="`True`, `False` (a new connection each time), or a dict: see below.",
    ),
    Option(
        "pipelining",
        rules.flag,
        default=True,
        doc="Use PIPELINING (RFC 2920) if the server offers it.",
    ),
    Option(
        "chunking",
        rules.flag,
        default=False,
        doc="Use CHUNKING (RFC 3030) if the server offers it.",
    ),
    Option(
        "batch_connections",
        rules.whole(1),
        default=1,
        doc="Connections that one `send_messages()` may use at once.",
    ),
    Option(
        "idempotency",
        rules.optional(rules.flag),
        default=None,
        doc="Give messages an `Idempotency-Key` and repeat unconfirmed ones; "
        "`None`: at Lettermint's hosts only.",
    ),
    Option(
        "correlation_key",
        rules.optional(rules.field_name),
        default="django_message_id",
        doc="The metadata key that brings our message id to webhooks; `None`: off.",
    ),
    Option(
        "send_defaults",
        send_defaults,
        default={},
        doc="What messages have that say nothing else: route, tag, metadata, …",
    ),
    Option(
        "fail_silently",
        rules.flag,
        default=False,
        doc="Do not raise when sending fails.",
    ),
    Option(
        "signing_secret",
        rules.secrets,
        default=None,
        doc="The webhooks' secret, `whsec_…`, or a list of them.",
    ),
    Option(
        "webhook_dedupe",
        rules.flag,
        default=True,
        doc="Run receivers once for an event that comes twice.",
    ),
)

_POOL = PoolConfig()  # each default is written once, there

POOL_OPTIONS = _table(
    Option(
        "max_size",
        rules.whole(1),
        default=_POOL.max_size,
        doc="Connections at once, in this process.",
    ),
    Option(
        "timeout",
        rules.seconds,
        default=_POOL.timeout,
        doc="Seconds to wait for a free connection.",
    ),
    Option(
        "max_waiting",
        rules.whole(0),
        default=_POOL.max_waiting,
        doc="Callers that may wait for one; 0: any number.",
    ),
    Option(
        "max_idle",
        rules.seconds,
        default=_POOL.max_idle,
        doc="Seconds after which an unused connection is closed.",
    ),
    Option(
        "max_lifetime",
        rules.seconds,
        default=_POOL.max_lifetime,
        doc="Seconds after which any connection is closed.",
    ),
    Option(
        "max_messages",
        rules.whole(0),
        default=_POOL.max_messages,
        doc="Messages on one connection; 0: any number.",
    ),
    Option(
        "ping_after",
        rules.optional(rules.seconds_or_zero),
        default=_POOL.ping_after,
        doc="Idle seconds until a connection is tested; 0: always, `None`: never.",
    ),
)
