from __future__ import annotations

from django.urls import include, path

from django_lettermint.webhooks import LettermintTrackingWebhookView

urlpatterns = [
    path("", include("django_lettermint.urls")),
    path("of/<str:tenant>/", include("django_lettermint.urls")),
    path("number/<int:tenant>/", include("django_lettermint.urls")),
    path(
        "own/<str:tenant>/",
        LettermintTrackingWebhookView.as_view(signing_secret="whsec_own"),
    ),
]
