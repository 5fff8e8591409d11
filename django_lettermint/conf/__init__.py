"""Keywords, OPTIONS and settings into validated, frozen configuration."""

from __future__ import annotations

from .options import (
    IDEMPOTENCY_KEY_TTL,
    OPTIONS,
    POOL_OPTIONS,
    QUEUE_OPTIONS,
    SECURITY_BY_PORT,
    WEBHOOK_OPTIONS,
    BackendConfig,
    Endpoint,
    Option,
    PoolConfig,
    QueueConfig,
    RelayConfig,
    WebhookConfig,
)
from .settings import backend_config, queue_config, unknown_settings, webhook_config
from .tenants import looked_up, tenant_config, tenant_webhook_config
from .wrappers import Hidden, Secret, hide

__all__ = [
    "IDEMPOTENCY_KEY_TTL",
    "OPTIONS",
    "POOL_OPTIONS",
    "QUEUE_OPTIONS",
    "SECURITY_BY_PORT",
    "WEBHOOK_OPTIONS",
    "BackendConfig",
    "Endpoint",
    "Hidden",
    "Option",
    "PoolConfig",
    "QueueConfig",
    "RelayConfig",
    "Secret",
    "WebhookConfig",
    "backend_config",
    "hide",
    "looked_up",
    "queue_config",
    "tenant_config",
    "tenant_webhook_config",
    "unknown_settings",
    "webhook_config",
]
