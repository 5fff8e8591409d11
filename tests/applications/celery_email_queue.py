"""django-celery-email-reboot: a Celery task sends the mail."""

from __future__ import annotations

from celery import Celery

from tests.applications import project

project.start(
    "djcelery_email",
    queue="djcelery_email.backends.CeleryEmailBackend",
    queue_options={"using": "relay"},
    CELERY_EMAIL_BACKEND=project.SENDS,
)

from django.core.mail import EmailMessage

from django_lettermint.message import LettermintMessage, freeze

# Without a broker; arguments still travel as JSON.
app = Celery(task_always_eager=True, task_store_eager_result=False)
app.conf.task_eager_propagates = True
app.autodiscover_tasks(["djcelery_email"], force=True)

if __name__ == "__main__":
    EmailMessage("Hello", "Hi", None, ["ada@example.com"]).send()
    tagged = LettermintMessage("Frozen", "Hi", None, ["ada@example.com"], tag="hello")
    freeze(tagged).send()
