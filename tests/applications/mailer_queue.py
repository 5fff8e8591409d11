"""django-mailer: its command sends the mail stored in its tables."""

from __future__ import annotations

from tests.applications import project

project.start(
    "mailer",
    queue="mailer.backend.DbBackend",
    MAILER_EMAIL_BACKEND=project.SENDS,
    MAILER_USE_FILE_LOCK=False,
)

from django.core.mail import EmailMessage
from mailer.engine import send_all

from django_lettermint.message import LettermintMessage

if __name__ == "__main__":
    EmailMessage("Hello", "Hi", None, ["ada@example.com"]).send()
    # It pickles messages with our attributes.
    LettermintMessage("Tagged", "Hi", None, ["ada@example.com"], tag="hello").send()
    send_all()
