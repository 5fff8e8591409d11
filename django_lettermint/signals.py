"""The signals of sent and failed messages; each message sends one of them."""

from __future__ import annotations

from django.dispatch import Signal

#: The relay took the message for at least one recipient.
#: Arguments: sender (the backend class), message (the caller's EmailMessage),
#: result (results.SendResult).
message_sent = Signal()

#: The message was not sent, or its outcome is unknown.
#: Arguments: sender (the backend class), message (the caller's EmailMessage),
#: result (results.SendResult), error (the exception).
message_failed = Signal()
