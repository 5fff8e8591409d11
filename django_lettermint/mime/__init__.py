"""Write messages as octets that are the same on every Python and Django."""

from __future__ import annotations

from .addresses import IdnaEncode, Mailbox, parse, parse_list, parse_one
from .bodies import Part, with_crlf
from .compose import body, header, is_stock, render
from .foreign import seven_bit

__all__ = ["IdnaEncode", "Mailbox", "Part", "body", "header", "is_stock", "parse"]
__all__ += ["parse_list", "parse_one", "render", "seven_bit", "with_crlf"]
