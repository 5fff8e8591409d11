"""Where options are found: the only code that reads settings.

An option is looked up, each time anew, among the constructor's keywords (the OPTIONS of
MAILERS), then as ANYMAIL["LETTERMINT_X"], ANYMAIL_LETTERMINT_X and LETTERMINT_X.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from anymail.exceptions import AnymailConfigurationError, AnymailInvalidMailer
from anymail.utils import get_anymail_setting
from django.conf import settings

from .options import OPTIONS
from .queue_options import QUEUE_OPTIONS
from .suggestions import suggest
from .validators import Invalid, Option, flag

_PREFIX = "LETTERMINT_"

#: Options of Anymail's own backend class, left to it.
_ANYMAIL_OPTIONS = {
    name: Option(name, rule, default=default, doc="Anymail's.")
    for name, rule, default in (
        ("ignore_unsupported_features", flag, False),
        ("ignore_recipient_status", flag, False),
        ("debug_api_requests", flag, False),
        ("idna_encoder", lambda value: value, "idna2008"),
    )
}
_OPTIONS = {**OPTIONS, **QUEUE_OPTIONS, **_ANYMAIL_OPTIONS}


@functools.cache
def setting_name(option: str) -> str:
    """Return the name of an option in settings, without `ANYMAIL_`."""
    return _PREFIX + option.upper()


_KNOWN_SETTINGS = frozenset(map(setting_name, _OPTIONS))


def unknown_settings(names: Iterable[object]) -> dict[str, str]:
    """Return those of `names` that look like ours but are not, with a suggestion each."""
    return {
        name: suggest(name.removeprefix(_PREFIX).lower(), _OPTIONS, spell=setting_name)
        for name in names
        if isinstance(name, str)
        and name.startswith(_PREFIX)
        and name not in _KNOWN_SETTINGS
    }


class Source:
    """The keywords of one constructor call, before the settings."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        self.kwargs = kwargs
        self.alias: str | None = kwargs.get("alias")
        # Django 6.1 merges get_connection(**keywords) into OPTIONS and lists them here.
        self.ignored = frozenset(kwargs.get("_ignore_unknown_kwargs") or ())
        # Django <= 6.0 passes these with every send_mail(): nobody has chosen them.
        for name in ("username", "password"):
            if name in kwargs and kwargs[name] is None:
                del kwargs[name]
        if self.alias is None and kwargs.get("fail_silently") is False:
            del kwargs["fail_silently"]
        self.given = frozenset(kwargs)
        self._anymail = getattr(settings, "ANYMAIL", {})
        # Asking Django for settings that are not there, one by one, takes it longer
        # than a mail takes us.
        self._names = frozenset(dir(settings))
        if "password" in kwargs:
            kwargs["api_token"] = kwargs.pop("password")

    def take(self, name: str) -> Any:
        """Return an option, validated, and remove it from the keywords."""
        option = _OPTIONS[name]
        try:
            # Not through a variable: debug pages show those, and this may be the token.
            return option.rule(self._find(name, option.default))
        except Invalid as invalid:
            key, problem = invalid.key, f"{invalid}. {invalid.remedy or option.remedy}"
        # Raised out here to have no context, whose frames hold the refused value.
        if not self.where(name):
            # The default itself was refused: only a required option has such a one.
            problem = f"is not set. Define {setting_name(name)} in the settings, or "
            problem += f"{name!r} in the OPTIONS of the mailer. {option.remedy}"
        raise self.error(name, problem, key=key)

    def take_for_anymail(self) -> None:
        """Put Anymail's options into the keywords, unless they are set for all of it."""
        for name in _ANYMAIL_OPTIONS:
            general = name.upper()
            for_all = general in self._anymail or f"ANYMAIL_{general}" in self._names
            if self.where(name) or not for_all:
                self.kwargs[name] = self.take(name)

    def _find(self, name: str, default: object) -> object:
        if not self.where(name):
            return default
        return get_anymail_setting(
            name, default, esp_name="Lettermint", kwargs=self.kwargs, allow_bare=True
        )

    def where(self, name: str) -> str:
        """Return the place where an option is set, or "" if it is nowhere."""
        setting = setting_name(name)
        if name == "api_token" and "password" in self.given:
            name = "password"
        if name in self.given:
            if self.alias is None or name in self.ignored:
                return f"the constructor keyword {name}"
            return f"MAILERS[{self.alias!r}]['OPTIONS'][{name!r}]"
        if setting in self._anymail:
            return f"ANYMAIL[{setting!r}]"
        names = (f"ANYMAIL_{setting}", setting)
        return next((name for name in names if name in self._names), "")

    def refuse_unknown(self, options: Iterable[str] = OPTIONS) -> None:
        """Raise for a keyword or an ANYMAIL setting that would have no effect."""
        known = {"alias", "_ignore_unknown_kwargs", *_ANYMAIL_OPTIONS, *self.ignored}
        for name in self.kwargs.keys() - known:
            raise self.error(name, f"is not an option. {suggest(name, options)}")
        unknown = unknown_settings(self._anymail)
        for name, suggestion in unknown.items():
            raise self._error(f"ANYMAIL[{name!r}] is not an option. {suggestion}")

    def error(
        self, name: str, problem: str, *, key: str = ""
    ) -> AnymailConfigurationError:
        """Build the error, of Django's type for its source, to say that `name` is wrong."""
        return self._error(f"{self.where(name) or name}{key} {problem}")

    def _error(self, text: str) -> AnymailConfigurationError:
        if self.alias is None:
            return AnymailConfigurationError(text)
        # InvalidMailer puts the alias in front: it is not to be said twice.
        named = text.startswith("MAILERS[")
        return AnymailInvalidMailer(text, alias=None if named else self.alias)
