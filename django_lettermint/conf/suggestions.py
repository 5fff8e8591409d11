"""Help for who misspelt a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from .validators import Invalid

#: What people write who come from Django's SMTP backend or another package.
_SYNONYMS = {
    "use_tls": "security",
    "use_ssl": "security",
    "user": "username",
    "password": "api_token",
    "token": "api_token",
    "api_key": "api_token",
    "webhook_secret": "signing_secret",
}


def suggest(
    name: object, known: Iterable[str], *, spell: Callable[[str], str] = str
) -> str:
    """Return the sentence that helps after an unknown `name`."""
    names = list(known)
    synonym = _SYNONYMS.get(str(name), "")
    close = [synonym] if synonym in names else get_close_matches(str(name), names, n=1)
    if close:
        return f"Did you mean {spell(close[0])!r}?"
    return f"Known are {', '.join(map(spell, names))}."


def unknown(name: object, known: Iterable[str]) -> Invalid:
    """Build the error for a key that a dict of options does not know."""
    return Invalid(
        "is not an option here", key=f"[{name!r}]", remedy=suggest(name, known)
    )
