"""One mail transaction of a fault server: from MAIL to the end of the content."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.fault_ledger import Delivery, key_of
from tests.faults import Answer, text_answer


@dataclass(slots=True, kw_only=True)
class Transaction:
    """What the server holds between MAIL and its last reply; without a sender, nothing."""

    connection: int
    sender: str | None = None
    parameters: bytes = b""
    recipients: list[str] = field(default_factory=list)
    chunks: bytearray = field(default_factory=bytearray)

    @property
    def smtputf8(self) -> bool:
        return b"SMTPUTF8" in self.parameters.upper().split()

    @property
    def eight_bit(self) -> bool:
        return b"BODY=8BITMIME" in self.parameters.upper().split()

    def refusal_of_content(self) -> Answer | None:
        """Return the reply to content that comes too early, None if it may come."""
        if self.sender is None:
            return text_answer(503, "5.5.1 MAIL first")
        if not self.recipients:
            return text_answer(554, "5.5.1 no valid recipients")
        return None

    def delivery(self, content: bytes) -> Delivery:
        return Delivery(
            mail_from=self.sender or "",
            recipients=tuple(self.recipients),
            content=content,
            key=key_of(content),
            connection=self.connection,
            parameters=self.parameters.decode("latin-1"),
        )


def parse_path(argument: bytes, keyword: bytes) -> tuple[str, bytes] | None:
    """Return the address of `FROM:<…>` or `TO:<…>` and the parameters behind it."""
    pattern = rb"%s:<(.*)>(?: (.*))?" % keyword
    found = re.fullmatch(pattern, argument, re.IGNORECASE | re.DOTALL)
    return (found[1].decode("utf-8", "replace"), found[2] or b"") if found else None
