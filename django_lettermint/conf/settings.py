"""Options into validated, frozen configuration.

What each module does: `options` lists the options, `rules` says what their values must
be, `lookup` finds them and words the errors. This one puts them together and is the only
one that others need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .lookup import Source
from .options import PoolConfig
from .queue_options import QUEUE_OPTIONS
from .secret import Secret
from .validators import is_loopback

#: Lettermint's documented ports.
SECURITY_BY_PORT = {
    465: "tls",
    25: "starttls",
    587: "starttls",
    2525: "starttls",
    2465: "starttls",
    2587: "starttls",
}
_PORT_BY_SECURITY = {"tls": 465, "starttls": 587, "plaintext": 25}

#: Options that only webhooks use. The backend takes and validates them, no more.
WEBHOOK_OPTIONS = ("signing_secret", "webhook_dedupe")

_OF_THE_ENDPOINT = ("username", "auth_mechanism", "ca_file", "local_hostname")
_OF_THE_RELAY = (
    "timeout",
    "final_reply_timeout",
    "deadline",
    "retries",
    "pipelining",
    "chunking",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """All that shapes a connection; what agrees in it shares a pool.

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
    batch_connections: int
    idempotency: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """What one backend object works with."""

    relay: RelayConfig
    correlation_key: str | None
    send_defaults: Mapping[str, object]
    fail_silently: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """What the queueing backend works with; times are seconds, sizes octets."""

    using: str | None
    task_backend: str
    queue_name: str
    priority: int
    max_bytes: int
    give_up_after: float
    on_commit: bool
    fail_silently: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """What the webhook views work with."""

    signing_secrets: tuple[Secret, ...]
    dedupe: bool
    correlation_key: str | None


def backend_config(kwargs: dict[str, Any]) -> BackendConfig:
    """Take all options out of `kwargs`, look the missing ones up, and validate them.

    Raises AnymailInvalidMailer if `kwargs` has an alias, else AnymailConfigurationError.
    """
    source = Source(kwargs)
    # Secrets first: no later error may show them on a debug page, inside `kwargs`.
    token = source.take("api_token")
    for name in WEBHOOK_OPTIONS:
        if name in kwargs:
            source.take(name)
    config = BackendConfig(
        relay=_relay_config(source, token),
        correlation_key=source.take("correlation_key"),
        send_defaults=source.take("send_defaults"),
        fail_silently=source.take("fail_silently"),
    )
    source.take_for_anymail()
    source.refuse_unknown()
    return config


def queue_config(kwargs: dict[str, Any]) -> QueueConfig:
    """Take the queueing backend's options out of `kwargs`, as `backend_config()` does.

    The relay's options are not among them: they belong to the backend that sends.
    """
    source = Source(kwargs)
    names = (*QUEUE_OPTIONS, "fail_silently")
    config = QueueConfig(**{name: source.take(name) for name in names})
    source.refuse_unknown(names)
    return config


def webhook_config(kwargs: dict[str, Any] | None = None) -> WebhookConfig:
    """Look up what webhooks need, in `kwargs` (of `as_view()`) and in the settings."""
    source = Source({} if kwargs is None else kwargs)
    return WebhookConfig(
        signing_secrets=source.take("signing_secret"),
        dedupe=source.take("webhook_dedupe"),
        correlation_key=source.take("correlation_key"),
    )


def _relay_config(source: Source, token: Secret) -> RelayConfig:
    host = source.take("host")
    port, security = _port_and_security(source, host)
    pool = source.take("pool")
    batch_connections = source.take("batch_connections")
    if pool and batch_connections > pool.max_size:
        problem = f"must not exceed the pool's max_size, {pool.max_size}"
        raise source.error("batch_connections", f"{problem}, or that must be raised.")
    idempotency = source.take("idempotency")
    endpoint = Endpoint(
        token=token,
        host=host,
        port=port,
        security=security,
        pool=pool or PoolConfig(),
        pooled=pool is not None,
        **{name: source.take(name) for name in _OF_THE_ENDPOINT},
    )
    return RelayConfig(
        endpoint=endpoint,
        batch_connections=batch_connections,
        # A relay that ignores the key would deliver a repeated message twice.
        idempotency=_knows_idempotency(host) if idempotency is None else idempotency,
        **{name: source.take(name) for name in _OF_THE_RELAY},
    )


def _port_and_security(source: Source, host: str) -> tuple[int, str]:
    port, security = source.take("port"), source.take("security")
    if security is None:
        if port not in SECURITY_BY_PORT:
            known = ", ".join(map(str, SECURITY_BY_PORT))
            raise source.error(
                "port",
                f"is {port}, which is none of {known}: "
                'set security="tls" or security="starttls" as well.',
            )
        return port, SECURITY_BY_PORT[port]
    if not source.where("port"):
        port = _PORT_BY_SECURITY[security]
    if security == "plaintext" and not is_loopback(host):
        raise source.error(
            "security",
            f'must not be "plaintext" for {host!r}: mail and token would travel in '
            'clear. Use "tls" or "starttls"; plaintext is for a loopback host.',
        )
    return port, security


def _knows_idempotency(host: str) -> bool:
    name = host.lower()
    return name == "lettermint.co" or name.endswith(".lettermint.co")
