"""docs/tenants.md: its model, resolver, middleware and webhooks, in a project of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from django.core.mail import send_mail
from django.http import HttpResponse
from django.test import RequestFactory, override_settings

from django_lettermint.testing import Relay
from tests.snippets import DOCS, ROOT, snippet

if TYPE_CHECKING:
    from pathlib import Path

    from django.http import HttpRequest

PAGE = DOCS / "tenants.md"
PROGRAM = """
import json, os, sys
import django
from django.conf import settings
settings.configure(
    SECRET_KEY="docs",
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["customers", "django_lettermint"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    LETTERMINT_TENANTS="customers.tenants.options",
    ANYMAIL=json.loads(os.environ["RELAY"]),
)
django.setup()
from django.core.management import call_command
call_command("migrate", run_syncdb=True, verbosity=0)
from customers.models import Customer
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.message import LettermintMessage

acme = Customer.objects.create(slug="acme", api_token="lm_acme", route="acme-route")
Customer.objects.create(slug="empty")

def send(tenant):
    message = LettermintMessage(
        tenant, "", "ann@example.org", ["bob@example.org"], tenant=tenant
    )
    try:
        EmailBackend().send_messages([message])
    except LettermintInvalidMessage as error:
        return str(error)
    return ""

failed = [send("acme"), send("empty"), send("nobody")]
acme.api_token = "lm_acme_new"
acme.save()
failed.append(send("acme"))
json.dump(failed, sys.stdout)
"""


def test_the_model_and_its_resolver_send_and_rotate(tmp_path: Path) -> None:
    (tmp_path / "customers").mkdir()
    (tmp_path / "customers" / "__init__.py").touch()
    for name in ("models", "tenants"):
        code = snippet(PAGE, f"# customers/{name}.py").code
        (tmp_path / "customers" / f"{name}.py").write_text(code, "utf-8")
    with Relay(other_tokens=["lm_acme", "lm_acme_new"]) as relay:
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={
                **os.environ,
                "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
                "RELAY": json.dumps(relay.settings()),
            },
            capture_output=True,
            text=True,
            check=True,
        )

    sent, empty, nobody, again = json.loads(ran.stdout)
    assert (sent, again) == ("", "")
    assert "tenants('empty')['api_token'] must be" in empty
    assert "tenant 'nobody'" in nobody
    assert [(each.token, each.route) for each in relay.messages] == [
        ("lm_acme", "acme-route"),
        ("lm_acme_new", "acme-route"),
    ]


def test_the_middleware_sets_the_tenant_of_each_request() -> None:
    names: dict[str, Any] = {}
    snippet(PAGE, "class TenantMiddleware").run(names)

    def view(request: HttpRequest) -> HttpResponse:
        send_mail("Hi", "", "ann@example.org", ["bob@example.org"])
        return HttpResponse()

    with Relay(other_tokens=["lm_acme", "lm_globex"]) as relay:
        settings = relay.settings(tenants=lambda name: {"api_token": f"lm_{name}"})
        backend = "django_lettermint.backend.EmailBackend"
        with override_settings(EMAIL_BACKEND=backend, ANYMAIL=settings):
            for host in ("acme.example.org", "globex.example.org"):
                names["TenantMiddleware"](view)(
                    RequestFactory().get("/", HTTP_HOST=host)
                )

    assert [each.token for each in relay.messages] == ["lm_acme", "lm_globex"]
