"""A site whose one page sends a mail: its settings and URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpResponse
from django.urls import path

from tests.settings import *  # noqa: F403 - as settings extend others

if TYPE_CHECKING:
    from django.http import HttpRequest

ROOT_URLCONF = "tests.pool.worker_site"


def send(request: HttpRequest, number: int) -> HttpResponse:
    from tests.pool.worker_mail import report

    report(f"{number}@example.org")
    return HttpResponse("sent")


urlpatterns = [path("<int:number>", send)]
