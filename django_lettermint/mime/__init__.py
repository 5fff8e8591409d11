"""From a message to octets: one writer, whose output is the same everywhere."""

from __future__ import annotations

from .addresses import IdnaEncode, Mailbox, parse, parse_list, parse_one
from .bodies import with_crlf
from .compose import body, check_alternative, check_attachment, header, is_stock, render
from .fields import ADDRESS_FIELDS, address_text
from .foreign import seven_bit

__all__ = ["ADDRESS_FIELDS", "IdnaEncode", "Mailbox", "address_text", "body", "header"]
__all__ += ["check_alternative", "check_attachment", "is_stock", "parse"]
__all__ += [
    "parse_list",
    "parse_one",
    "render",
    "seven_bit",
    "single_line",
    "with_crlf",
]
