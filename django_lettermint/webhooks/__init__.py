"""Lettermint's webhooks as Anymail's `tracking` and `inbound` signals."""

from __future__ import annotations

from .views import (
    LettermintInboundWebhookView,
    LettermintTrackingWebhookView,
    LettermintWebhookView,
)

__all__ = [
    "LettermintInboundWebhookView",
    "LettermintTrackingWebhookView",
    "LettermintWebhookView",
]
