"""django-post-office: its command sends the mail stored in its tables."""

from __future__ import annotations

from tests.applications import project

project.start(
    "post_office",
    queue="post_office.EmailBackend",
    POST_OFFICE=(
        {"DEFAULT_MAILER": "relay"}
        if project.MAILERS
        else {"BACKENDS": {"default": project.SENDS}}
    ),
)

from django.core.mail import EmailMessage
from django.core.management import call_command
from post_office import mail

from django_lettermint.message import LettermintMessage, freeze

if __name__ == "__main__":
    EmailMessage("Hello", "Hi", None, ["ada@example.com"]).send()
    tagged = LettermintMessage("Frozen", "Hi", None, ["ada@example.com"], tag="hello")
    freeze(tagged).send()
    mail.send("bob@example.com", subject="Direct", headers={"X-LM-Tag": "direct"})
    call_command("send_queued_mail", processes=1, verbosity=0)
