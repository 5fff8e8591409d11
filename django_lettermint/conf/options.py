"""Every option: name, default, validator and meaning; and the classes they are read into."""

# ruff: noqa: FBT003 - the defaults of flags stand in the table by their place

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from .validators import (
    InvalidOption,
    ca_file,
    ehlo_name,
    field_name,
    flag,
    host,
    idna_encoder,
    invalid_value,
    one_of,
    optional,
    resolver,
    seconds,
    seconds_or_zero,
    seconds_up_to,
    secret,
    secrets,
    send_defaults,
    tenant,
    unknown_name,
    whole_number,
    word,
)
from .wrappers import Hidden, unwrap

if TYPE_CHECKING:
    from .wrappers import Secret

#: Seconds for which Lettermint remembers an idempotency key: an attempt after them could
#: deliver a message twice.
IDEMPOTENCY_KEY_TTL = 24 * 60 * 60

#: Lettermint's documented ports.
SECURITY_BY_PORT = {
    465: "tls",
    25: "starttls",
    587: "starttls",
    2525: "starttls",
    2465: "starttls",
    2587: "starttls",
}

#: Options that only webhooks use. The backend takes and validates them, no more.
WEBHOOK_OPTIONS = ("signing_secret", "webhook_dedupe")

#: Returns the options of a tenant; raises LookupError if there is no such tenant.
Tenants: TypeAlias = Callable[[str], Mapping[str, object]]


def _option(default: object, validate: Callable[[Any], Any], doc: str) -> Any:
    """Make a field of a dataclass whose fields are options."""
    return field(default=default, metadata={"validate": validate, "doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """How connections are shared and kept; times are seconds."""

    max_size: int = _option(
        10, whole_number(1), "Connections at once, in this process."
    )
    timeout: float = _option(10.0, seconds, "Seconds to wait for a free connection.")
    max_waiting: int = _option(
        0, whole_number(0), "Callers that may wait for one; 0: any number."
    )
    max_idle: float = _option(
        45.0, seconds, "Seconds after which an unused connection is closed."
    )
    max_lifetime: float = _option(
        300.0, seconds, "Seconds after which any connection is closed."
    )
    max_messages: int = _option(
        100, whole_number(0), "Messages on one connection; 0: any number."
    )
    ping_after: float | None = _option(
        20.0,
        optional(seconds_or_zero),
        "Idle seconds until a connection is tested; 0: always, `None`: never.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What shapes a connection; backends with equal endpoints share a pool.

    `security` is "tls", "starttls" or "plaintext".
    """

    token: Secret
    host: str
    port: int
    security: str
    username: str
    auth_mechanism: str | None
    ca_file: str | None
    local_hostname: str | None
    pool: PoolConfig
    pooled: bool
    #: Tenants never share a pool, whatever their options.
    tenant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """A relay, and how one backend uses its connections; times are seconds."""

    endpoint: Endpoint
    timeout: float
    final_reply_timeout: float
    deadline: float
    retries: int
    pipelining: bool
    chunking: bool
    #: None: as many as `delivery.list_connections()` says.
    batch_connections: int | None
    idempotency: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """What one backend object works with."""

    relay: RelayConfig
    correlation_key: str | None
    send_defaults: Mapping[str, object]
    fail_silently: bool
    ignore_unsupported_features: bool
    ignore_recipient_status: bool
    debug_api_requests: bool
    idna_encoder: Callable[[str], str]
    #: The names of the options that code has given, besides the settings.
    keywords: tuple[str, ...]
    tenant: str | None = None
    #: Not in the repr: that of a partial or of a bound method shows what it holds.
    tenants: Tenants | None = field(default=None, repr=False)
    #: The SettingsReader of all this; a tenant's options are laid over what it finds.
    reader: Hidden = field(default=Hidden(None), compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """What the queueing backend works with; times are seconds, sizes octets."""

    using: str | None = _option(
        None,
        optional(word),
        "The mailer that sends, by its alias in `MAILERS`; `None`: the backend made from "
        "the settings.",
    )
    task_backend: str = _option(
        "default", word, "The task backend, by its alias in `TASKS`."
    )
    queue_name: str = _option("default", word, "The queue of the task backend.")
    priority: int = _option(
        0,
        whole_number(-100, 100),
        "-100 to 100; higher values are processed first. Not every task backend has "
        "priorities.",
    )
    max_bytes: int = _option(
        10 * 1024 * 1024,
        whole_number(1),
        "Octets of a rendered message; a larger one is refused.",
    )
    give_up_after: float = _option(
        IDEMPOTENCY_KEY_TTL,
        seconds_up_to(IDEMPOTENCY_KEY_TTL),
        "Seconds after which a message is not tried again; at most a day.",
    )
    on_commit: bool = _option(False, flag, "Enqueue with `transaction.on_commit()`.")
    fail_silently: bool
    #: The names of the options that code has given, besides the settings.
    keywords: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """What the webhook views work with."""

    signing_secrets: tuple[Secret, ...]
    dedupe: bool
    correlation_key: str | None
    tenants: Tenants | None = field(default=None, repr=False)
    #: As in BackendConfig.
    reader: Hidden = field(default=Hidden(None), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Option:
    """One option; `validate` returns the value to use or raises InvalidOption."""

    name: str
    default: object
    validate: Callable[[Any], Any]
    doc: str = ""
    required: bool = False

    @property
    def remedy(self) -> str:
        """Return what to do about a value that is refused."""
        if self.required:
            return (
                "Copy the project's sending token from the Lettermint dashboard; "
                "if it comes from the environment, see that the variable is set."
            )
        return f"Correct it, or remove it for the default, {self.default!r}."


def _pool(value: object) -> PoolConfig | None:
    """Accept True, a dict, or False, which is returned as None."""
    if isinstance(value, bool):
        return PoolConfig() if value else None
    if not isinstance(value, Mapping):
        raise invalid_value("True, False or a dict", value)
    parsed = {}
    for name, item in value.items():
        if name not in POOL_OPTIONS:
            raise unknown_name(name, POOL_OPTIONS)
        option = POOL_OPTIONS[name]
        try:
            parsed[name] = option.validate(unwrap(item))
        except InvalidOption as invalid:
            key = f"[{name!r}]"
            raise InvalidOption(str(invalid), key=key, remedy=option.remedy) from None
    return PoolConfig(**parsed)


def _table(*options: Option) -> Mapping[str, Option]:
    return MappingProxyType({option.name: option for option in options})


def _fields(kind: type[PoolConfig | QueueConfig]) -> Mapping[str, Option]:
    return _table(
        *(
            Option(each.name, each.default, **each.metadata)
            for each in fields(kind)
            if each.metadata
        )
    )


OPTIONS = _table(
    Option(
        "api_token",
        None,
        secret,
        "The project's sending token; it is the SMTP password.",
        required=True,
    ),
    Option("host", "smtp.lettermint.co", host, "The relay."),
    Option(
        "port",
        465,
        whole_number(1, 65535),
        "25, 587, 2525, 2465, 2587 (STARTTLS) or 465 (TLS from the first byte); any other "
        "needs `security`.",
    ),
    Option(
        "security",
        None,
        optional(one_of("tls", "starttls", "plaintext")),
        '`"tls"`, `"starttls"`, or `"plaintext"` (loopback hosts only); `None`: by the '
        "port.",
    ),
    Option("username", "lettermint", word, "The SMTP user name."),
    Option(
        "auth_mechanism",
        None,
        optional(one_of("PLAIN", "LOGIN", "CRAM-MD5")),
        '`"PLAIN"`, `"LOGIN"` or `"CRAM-MD5"`; `None`: the first of these that the server '
        "offers.",
    ),
    Option(
        "ca_file",
        None,
        optional(ca_file),
        "A PEM file of further certificate authorities, for a private relay.",
    ),
    Option(
        "local_hostname",
        None,
        optional(ehlo_name),
        "The name given at EHLO; `None`: this machine's full name.",
    ),
    Option("timeout", 10, seconds, "Seconds to connect, and for each reply."),
    Option("final_reply_timeout", 60, seconds, "Seconds for the reply to a message."),
    Option("deadline", 120, seconds, "Seconds for a message, retries included."),
    Option(
        "retries",
        8,
        whole_number(0),
        "Further attempts when no connection can be made or a new one is lost: with "
        "growing pauses, for 2 seconds, or for 10 with the mails of a list.",
    ),
    Option(
        "pool",
        True,
        _pool,
        "`True`, `False` (a new connection each time), or a dict: see below.",
    ),
    Option("pipelining", True, flag, "Use PIPELINING (RFC 2920) if it is offered."),
    Option("chunking", False, flag, "Use CHUNKING (RFC 3030) if it is offered."),
    Option(
        "batch_connections",
        None,
        optional(whole_number(1)),
        "Connections that one `send_messages()` may use at once; `None`: half of the pool "
        "for a long list, else one.",
    ),
    Option(
        "idempotency",
        None,
        optional(flag),
        "Give messages an `Idempotency-Key` and repeat unconfirmed ones; `None`: at "
        "Lettermint's hosts only.",
    ),
    Option(
        "correlation_key",
        "django_message_id",
        optional(field_name),
        "The metadata key under which webhooks return the message id; `None`: off.",
    ),
    Option(
        "send_defaults",
        {},
        send_defaults,
        "Defaults for every message: route, tag, metadata, …",
    ),
    Option(
        "tenants",
        None,
        optional(resolver),
        "A function, or its path, that returns a tenant's options: see [Tenants](tenants.md).",
    ),
    Option(
        "tenant",
        None,
        optional(tenant),
        "The tenant of messages that name none themselves.",
    ),
    Option("fail_silently", False, flag, "Do not raise when sending fails."),
    Option(
        "signing_secret",
        None,
        secrets,
        "The webhooks' secret, `whsec_…`, or a list of them.",
    ),
    Option(
        "webhook_dedupe",
        True,
        flag,
        "Run receivers once for an event that comes twice.",
    ),
)

POOL_OPTIONS = _fields(PoolConfig)
QUEUE_OPTIONS = _fields(QueueConfig)

#: Options that concern all messages of a call, whichever tenants they have.
NOT_OF_TENANTS = ("tenants", "tenant", "fail_silently")

#: Options of Anymail's own backend class. They can be set for all of Anymail's backends.
ANYMAIL_OPTIONS = _table(
    Option("ignore_unsupported_features", False, flag),
    Option("ignore_recipient_status", False, flag),
    Option("debug_api_requests", False, flag),
    Option("idna_encoder", "idna2008", idna_encoder),
)
