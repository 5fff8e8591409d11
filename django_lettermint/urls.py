"""The webhooks' URLs, for `path("anymail/", include("django_lettermint.urls"))`."""

from __future__ import annotations

from django.urls import path

from .webhooks import LettermintInboundWebhookView, LettermintTrackingWebhookView

urlpatterns = [
    path(
        "lettermint/tracking/",
        LettermintTrackingWebhookView.as_view(),
        name="lettermint_tracking_webhook",
    ),
    path(
        "lettermint/inbound/",
        LettermintInboundWebhookView.as_view(),
        name="lettermint_inbound_webhook",
    ),
]
