"""django-health-check: its check logs in at the relay and sends nothing."""

from __future__ import annotations

from tests.applications import project

project.start("health_check")

from django.test import Client
from django.urls import path
from health_check.views import HealthCheckView

urlpatterns = [
    path("health/", HealthCheckView.as_view(checks=["health_check.checks.Mail"]))
]

if __name__ == "__main__":
    answer = Client().get("/health/")
    assert answer.status_code == 200, answer.content
