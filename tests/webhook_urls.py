from __future__ import annotations

from django.urls import include, path

urlpatterns = [
    path("anymail/", include("anymail.urls")),
    path("anymail/", include("django_lettermint.urls")),
]
