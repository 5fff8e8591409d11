"""Every option of the queueing backend, `django_lettermint.tasks.EmailBackend`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from . import validators as rules
from .validators import Option

#: Seconds for which Lettermint remembers an idempotency key: an attempt after them could
#: deliver a message twice.
KEY_LIFE = 24 * 60 * 60

QUEUE_OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        option.name: option
        for option in (
            Option(
                "using",
                rules.optional(rules.word),
                default=None,
                doc="The mailer that sends, by its alias in `MAILERS`; `None`: the backend "
                "made from the settings.",
            ),
            Option(
                "task_backend",
                rules.word,
                default="default",
                doc="The task backend, by its alias in `TASKS`.",
            ),
            Option(
                "queue_name",
                rules.word,
                default="default",
                doc="The queue of the task backend.",
            ),
            Option(
                "priority",
                rules.whole(-100, 100),
                default=0,
                doc="-100 to 100; more is earlier. Not every task backend has priorities.",
            ),
            Option(
                "max_bytes",
                rules.whole(1),
                default=10 * 1024 * 1024,
                doc="Octets of a rendered message; a larger one is refused.",
            ),
            Option(
                "give_up_after",
                rules.seconds_up_to(KEY_LIFE),
                default=KEY_LIFE,
                doc="Seconds after which a message is not tried again; at most a day.",
            ),
            Option(
                "on_commit",
                rules.flag,
                default=False,
                doc="Queue when the database transaction around is committed, if there is "
                "one.",
            ),
        )
    }
)
