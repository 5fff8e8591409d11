from __future__ import annotations

import io
import json
import uuid
from collections import defaultdict
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from django_lettermint.exceptions import LettermintError, LettermintInvalidMessage
from django_lettermint.pool import get_stats

from . import batch
from .forms import ComposeForm, MetadataFormSet, metadata
from .models import Event, Mail

PAGE = 20


def links(request: HttpRequest) -> dict[str, str]:
    """Give all pages the address of the local relay's inbox, if there is one."""
    return {"inbox": settings.INBOX}


def compose(request: HttpRequest) -> HttpResponse:
    """Send a mail, and redirect to the outbox whether or not that fails."""
    form = ComposeForm(request.POST or None, request.FILES or None)
    rows = MetadataFormSet(request.POST or None, prefix="metadata")
    if request.method == "POST" and all([form.is_valid(), rows.is_valid()]):
        message = form.message(metadata(rows))
        try:
            send(request, message)
        except LettermintInvalidMessage as error:
            form.refuse(error)
        else:
            return redirect("outbox")
    return render(request, "outbox/compose.html", {"form": form, "rows": rows})


def send(request: HttpRequest, message: EmailMessage) -> bool:
    """Send, and show a message; receivers of signals store the mail."""
    try:
        message.send()
    except (LettermintError, ImproperlyConfigured) as error:
        messages.error(request, f"Not sent. {error}")
        return False
    messages.success(request, f"Sent “{message.subject}”.")
    return True


@require_safe
def outbox(request: HttpRequest) -> HttpResponse:
    """Show the mails, the newest first."""
    return render(request, "outbox/outbox.html", outbox_context(request))


@require_safe
def outbox_live(request: HttpRequest) -> HttpResponse:
    """Return the part of the outbox that the page polls."""
    return render(request, "outbox/_mails.html", outbox_context(request))


def outbox_context(request: HttpRequest) -> dict[str, Any]:
    page = Paginator(Mail.objects.all(), PAGE).get_page(request.GET.get("page"))
    events = defaultdict(list)
    ids = [mail.message_id for mail in page if mail.message_id]
    for event in Event.objects.filter(message_id__in=ids):
        events[event.message_id].append(event)
    return {
        "page": page,
        # A mail that was refused may share its id, made of a given key, with one sent.
        "mails": [
            (mail, [] if mail.outcome == "not_sent" else events[mail.message_id])
            for mail in page
        ],
        "sent": Mail.objects.filter(outcome="sent").count(),
        "events": Event.objects.count(),
    }


@require_safe
def pool(request: HttpRequest) -> HttpResponse:
    """Show this process's connections."""
    context = {"figures": figures(), "progress": batch.progress(request.GET)}
    return render(request, "outbox/pool.html", context)


@require_safe
def pool_live(request: HttpRequest) -> JsonResponse:
    """Return the numbers of the pool page."""
    progress = batch.progress(request.GET)
    return JsonResponse({"figures": figures(), "progress": progress})


def figures() -> dict[str, float]:
    """Add up the statistics of all pools; there is one for each configuration."""
    names = ("size", "in_use", "waiting", "opened", "reused", "messages", "waits")
    stats: list[Any] = get_stats()
    totals: dict[str, float] = {name: sum(s[name] for s in stats) for name in names}
    waited = sum(s["wait_seconds"] for s in stats)
    totals["wait_ms"] = (
        round(1000 * waited / totals["waits"]) if stats and waited else 0
    )
    leases = totals["opened"] + totals["reused"]
    totals["reuse"] = round(100 * totals["reused"] / leases) if leases else 0
    return totals


@require_POST
def send_many(request: HttpRequest) -> HttpResponse:
    """Send a hundred mails: the first one here, the others in several threads."""
    name = uuid.uuid4().hex[:8]
    if not send(request, batch.mail(name, 1)):
        return redirect("pool")
    batch.send_in_background(name, range(2, batch.SIZE + 1))
    return redirect(f"{reverse('pool')}?batch={name}")


def check(request: HttpRequest) -> HttpResponse:
    """Show the system checks; on POST, also connect and log in."""
    findings = [
        found for found in run_checks() if str(found.id).startswith("lettermint_smtp.")
    ]
    report = test_lettermint() if request.method == "POST" else None
    context = {"findings": findings, "report": report}
    return render(request, "outbox/check.html", context)


def test_lettermint() -> Any:
    """Return what `manage.py test_lettermint --check --json` prints."""
    output = io.StringIO()
    with suppress(CommandError):  # the document has the error as well
        call_command("test_lettermint", "--check", "--json", stdout=output)
    return json.loads(output.getvalue())
