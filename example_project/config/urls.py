from __future__ import annotations

from django.urls import include, path

urlpatterns = [
    path("", include("outbox.urls")),
    # Lettermint posts tracking events to /anymail/lettermint/tracking/.
    path("anymail/", include("django_lettermint.urls")),
]
