from __future__ import annotations

from django.urls import path

from . import views

urlpatterns = [
    path("", views.compose, name="compose"),
    path("outbox/", views.outbox, name="outbox"),
    path("outbox/live/", views.outbox_live, name="outbox_live"),
    path("pool/", views.pool, name="pool"),
    path("pool/live/", views.pool_live, name="pool_live"),
    path("pool/send-many/", views.send_many, name="send_many"),
    path("check/", views.check, name="check"),
]
