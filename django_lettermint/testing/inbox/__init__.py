"""The relay's inbox: a website on 127.0.0.1 that shows what the relay received."""

from __future__ import annotations

from .server import Inbox

__all__ = ["Inbox"]
