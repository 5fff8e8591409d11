"""Keywords, OPTIONS and settings into validated, frozen configuration."""

from __future__ import annotations

from .lookup import unknown_settings
from .options import OPTIONS, POOL_OPTIONS, PoolConfig
from .queue_options import KEY_LIFE, QUEUE_OPTIONS
from .secret import Secret
from .settings import (
    SECURITY_BY_PORT,
    WEBHOOK_OPTIONS,
    BackendConfig,
    Endpoint,
    QueueConfig,
    RelayConfig,
    WebhookConfig,
    backend_config,
    queue_config,
    webhook_config,
)
from .validators import Option

__all__ = [
    "KEY_LIFE",
    "OPTIONS",
    "POOL_OPTIONS",
    "QUEUE_OPTIONS",
    "SECURITY_BY_PORT",
    "WEBHOOK_OPTIONS",
    "BackendConfig",
    "Endpoint",
    "Option",
    "PoolConfig",
    "QueueConfig",
    "RelayConfig",
    "Secret",
    "WebhookConfig",
    "backend_config",
    "queue_config",
    "unknown_settings",
    "webhook_config",
]
