"""Where options are found: in keywords, a mailer's OPTIONS and the settings.

The first place that has an option wins: a keyword of the constructor, the OPTIONS of the
mailer, ANYMAIL["LETTERMINT_X"], ANYMAIL_LETTERMINT_X, LETTERMINT_X.

What Django's own settings objects hold is validated once and used until a value changes.
Other objects may answer differently by thread or time: they are asked for each backend
object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from copy import copy
from itertools import chain
from operator import is_
from types import ModuleType
from typing import Any, Final, TypeVar, cast

from anymail.exceptions import AnymailConfigurationError, AnymailInvalidMailer
from django.conf import LazySettings, Settings, UserSettingsHolder, settings
from django.utils.functional import Promise

from .options import (
    ANYMAIL_OPTIONS,
    NOT_OF_TENANTS,
    OPTIONS,
    QUEUE_OPTIONS,
    SECURITY_BY_PORT,
    WEBHOOK_OPTIONS,
    BackendConfig,
    Endpoint,
    Option,
    PoolConfig,
    QueueConfig,
    RelayConfig,
    WebhookConfig,
)
from .validators import InvalidOption, attributes, is_loopback, suggestion
from .wrappers import Hidden, hide, unwrap

_Config = TypeVar("_Config", BackendConfig, QueueConfig, WebhookConfig)

_PREFIX = "LETTERMINT_"
_PORT_BY_SECURITY = {"tls": 465, "starttls": 587, "plaintext": 25}

#: Keywords of Django's SMTP backend: those that repeat its signature pass them as None.
_DJANGO_KEYWORDS = (
    *("host", "port", "username", "password", "use_tls", "use_ssl", "timeout"),
    *("ssl_keyfile", "ssl_certfile"),
)
#: The defaults of messages for all of Anymail's backends.
_GENERAL_DEFAULTS: Final = "anymail_send_defaults"
_BACKEND_OPTIONS = {**OPTIONS, **ANYMAIL_OPTIONS}
_QUEUE_OPTIONS = {**QUEUE_OPTIONS, "fail_silently": OPTIONS["fail_silently"]}
_SETTABLE = {**_BACKEND_OPTIONS, **QUEUE_OPTIONS}
_OPTIONS = {**_SETTABLE, _GENERAL_DEFAULTS: Option(_GENERAL_DEFAULTS, {}, attributes)}
_KEYWORDS = {*_SETTABLE, *_DJANGO_KEYWORDS}
#: A URL's None for `signing_secret` must not become the secret of the settings either.
_MAY_BE_NONE = _KEYWORDS - {"api_token", "signing_secret"}
_OPTIONS_OF_TENANTS = [name for name in _BACKEND_OPTIONS if name not in NOT_OF_TENANTS]

_OF_THE_ENDPOINT = ("username", "auth_mechanism", "ca_file", "local_hostname")
_OF_THE_RELAY = (
    "timeout",
    "final_reply_timeout",
    "deadline",
    "retries",
    "pipelining",
    "chunking",
)


def setting_name(option: str) -> str:
    """Return the name of an option in settings, without `ANYMAIL_`."""
    return _PREFIX + option.upper()


def _places(option: str) -> tuple[str, ...]:
    """Return the places of an option in settings, as they are written there."""
    name, general = setting_name(option), option.upper()
    own = (f"ANYMAIL[{name!r}]", f"ANYMAIL_{name}", name)
    for_all = (f"ANYMAIL[{general!r}]", f"ANYMAIL_{general}")
    if option == _GENERAL_DEFAULTS:
        return ("ANYMAIL['SEND_DEFAULTS']", "ANYMAIL_SEND_DEFAULTS")
    return own + for_all if option in ANYMAIL_OPTIONS else own


def _in_anymail(places: Iterable[str]) -> dict[str, str]:
    """Return the places that are in the dict ANYMAIL, by their key there."""
    start, end = "ANYMAIL['", "']"
    return {
        place.removeprefix(start).removesuffix(end): place
        for place in places
        if place.startswith(start)
    }


_PLACES = {option: _places(option) for option in _OPTIONS}
_PLACES_IN_ANYMAIL = _in_anymail(chain.from_iterable(_PLACES.values()))
#: All names of settings in which options are found.
_NAMES = frozenset({"ANYMAIL", "MAILERS"}).union(*_PLACES.values()) - frozenset(
    _PLACES_IN_ANYMAIL.values()
)
_KNOWN_SETTINGS = frozenset(map(setting_name, _SETTABLE))

_UNSET: Any = object()
_NOTHING = Hidden({})

#: The configurations in use, each with the values it was made of.
_kept: dict[tuple[object, ...], tuple[Hidden, Any]] = {}


def backend_config(kwargs: dict[str, Any]) -> BackendConfig:
    """Take all options out of `kwargs`, look the missing ones up, and validate them.

    Raises AnymailInvalidMailer if `kwargs` has an alias, else AnymailConfigurationError.
    """
    return _configure(kwargs, _BACKEND_OPTIONS, build_backend_config)


def queue_config(kwargs: dict[str, Any]) -> QueueConfig:
    """Take the queueing backend's options out of `kwargs`, as `backend_config()` does.

    The relay's options are not among them: they belong to the backend that sends.
    """
    return _configure(kwargs, _QUEUE_OPTIONS, _queue_config)


def webhook_config(kwargs: dict[str, Any] | None = None) -> WebhookConfig:
    """Look up what webhooks need, in `kwargs` (of `as_view()`) and in the settings."""
    given = {}
    if kwargs is not None and "signing_secret" in kwargs:
        given["signing_secret"] = hide(kwargs.pop("signing_secret"))
    return _configure(given, OPTIONS, build_webhook_config)


def unknown_settings(names: Iterable[object]) -> dict[str, str]:
    """Return those of `names` that look like ours but are not, with a suggestion each."""
    return {
        name: suggestion(
            name.removeprefix(_PREFIX).lower(), _SETTABLE, spell=setting_name
        )
        for name in names
        if isinstance(name, str)
        and name.startswith(_PREFIX)
        and name not in _KNOWN_SETTINGS
    }


def _configure(
    kwargs: dict[str, Any],
    options: Mapping[str, Option],
    build: Callable[[SettingsReader], _Config],
) -> _Config:
    """Build a configuration, or return the one that the same values made before."""
    reader: SettingsReader = SettingsReader(kwargs, options)
    if reader.keywords or not reader.fixed:
        return build(reader)
    key = (build, reader.alias if reader.given else None, *sorted(reader.given))
    values = reader.snapshot()
    kept = _kept_for(key, values)
    if kept is not None:
        return cast("_Config", kept)
    config = build(reader)
    # The result of lazy() may be another each time.
    if not any(issubclass(type(each), Promise) for each in values.value):
        _kept[key] = values, config
    return config


def _kept_for(key: tuple[object, ...], values: Hidden) -> object:
    """Return the configuration made of the very same values before, or None.

    Equal values are not enough: 1 equals True.
    """
    before, config = _kept.get(key, (_NOTHING, None))
    same = map(is_, before.value, values.value)
    return config if len(before.value) == len(values.value) and all(same) else None


def _look_up() -> tuple[Hidden, bool]:
    """Return our settings, and whether they are plain values that can be kept."""
    # Asked directly: LazySettings keeps what it has once seen, for all threads.
    holder: Any = unwrap(settings) if type(settings) is LazySettings else settings
    names: set[str] = set()
    inner = holder
    while type(inner) is UserSettingsHolder:
        names.update(_NAMES.intersection(vars(inner)))
        inner = inner.default_settings
    fixed = type(inner) in {Settings, ModuleType} and not hasattr(inner, "__getattr__")
    if fixed:
        names.update(_NAMES.intersection(vars(inner)))
    try:
        return Hidden(_by_place(holder, sorted(names if fixed else _NAMES))), fixed
    except Exception as error:  # noqa: BLE001 - a lazy value's, or the holder's
        # Without its traceback, whose frames hold values: debug pages show those.
        cause = error.with_traceback(None)
    text = f"The settings cannot be read ({type(cause).__name__})."
    raise AnymailConfigurationError(text) from cause


def _by_place(holder: object, names: Iterable[str]) -> Any:
    """Return the settings of these names by place."""
    found = {}
    for name in names:
        value = getattr(holder, name, _UNSET)
        if value is not _UNSET:
            found[name] = value
    anymail = unwrap(found.pop("ANYMAIL", None))
    if anymail is None:
        return found
    if not isinstance(anymail, Mapping):
        raise TypeError("ANYMAIL must be a dict")
    for name, value in anymail.items():
        if name in _PLACES_IN_ANYMAIL:
            found[_PLACES_IN_ANYMAIL[name]] = value
        elif isinstance(name, str) and name.startswith(_PREFIX):
            found[f"ANYMAIL[{name!r}]"] = value
    return found


class SettingsReader:
    """One look-up of options: keywords and OPTIONS first, then the settings.

    Values are wrapped, and in no variable: debug pages show the variables of each frame.
    """

    def __init__(self, kwargs: dict[str, Any], options: Mapping[str, Option]) -> None:
        self.alias: str | None = kwargs.get("alias")
        #: The tenant whose options come first.
        self.tenant: str | None = None
        self._of_tenant: frozenset[str] = frozenset()
        self._options = options
        # Django 6.1 merges get_connection(**keywords) into OPTIONS and lists them here.
        merged = frozenset(kwargs.get("_ignore_unknown_kwargs") or ())
        of_django = {"alias", "_ignore_unknown_kwargs"} | (merged - _KEYWORDS)
        self.given = {
            name: hide(kwargs.pop(name))
            for name in tuple(kwargs)
            if name not in of_django
        }
        # After that: if the settings cannot be read, debug pages show `kwargs`.
        self._settings, self.fixed = _look_up()
        self._of_code = frozenset(self.given) if self.alias is None else merged
        self._of_mailer = Hidden(self._mailer()) if self.given else _NOTHING
        for name in self._of_code & self.given.keys():
            self._drop_if_not_given(name)
        #: The options that code has given, besides the settings.
        self.keywords = tuple(sorted(filter(self._differs, self.given)))
        if "api_token" in self.keywords and "password" not in self.keywords:
            self.given.pop("password", None)

    def _mailer(self) -> Any:
        """Return the OPTIONS of the mailer, as the settings have them."""
        with suppress(Exception):  # Django refuses what is wrong with them
            mailer = unwrap(unwrap(self._settings.value["MAILERS"])[self.alias])
            return dict(unwrap(mailer["OPTIONS"]))
        return {}

    def _differs(self, name: str) -> bool:
        """Return whether an option is not what the mailer has in the settings."""
        mailer = self._of_mailer.value
        with suppress(Exception):  # a lazy value's: get() reports it
            return name not in mailer or bool(
                mailer[name] is not self.given[name].value
                and unwrap(mailer[name]) != unwrap(self.given[name].value)
            )
        return True

    def _drop_if_not_given(self, name: str) -> None:
        """Replace a keyword that was not given by what is configured.

        None means "not given", but not for `api_token`: a NULL of a database must not
        become the token of the settings. A false `fail_silently` means the same: Django
        <= 6.0 passes it with every mail.
        """
        with suppress(Exception):  # a lazy value's: get() reports it
            self.given[name] = Hidden(unwrap(self.given[name].value))
        if name == "fail_silently" and self.given[name].value is not None:
            self.given[name] = Hidden(bool(self.given[name].value))
            if self.alias is not None or self.given[name].value:
                return
        elif name not in _MAY_BE_NONE or self.given[name].value is not None:
            return
        del self.given[name]
        if name in self._of_mailer.value:
            self.given[name] = Hidden(self._of_mailer.value[name])

    def for_tenant(self, tenant: str, options: Hidden) -> SettingsReader:
        """Return a reader that finds the `options` of a tenant before all others.

        An option that is None was not given. Token and secret are the tenant's in any
        case: nothing else replaces a missing one.
        """
        reader = copy(self)
        own = {"api_token": Hidden(None), "signing_secret": Hidden(None)}
        for name in options.value:
            given = Hidden(unwrap(options.value[name]))
            if given.value is not None:
                own[name] = given
        # A password would override the tenant's token.
        others = {key: each for key, each in self.given.items() if key != "password"}
        vars(reader).update(
            tenant=tenant, given=others | own, _of_tenant=frozenset(own)
        )
        return reader

    def get(self, name: str) -> Any:
        """Return an option, validated."""
        option = _OPTIONS[name]
        try:
            return option.validate(unwrap(self._raw(name)))
        except InvalidOption as invalid:
            key, problem = invalid.key, f"{invalid}. {invalid.remedy or option.remedy}"
        except Exception as error:  # noqa: BLE001 - a lazy value's, any kind
            cause = error.with_traceback(None)
            problem = f"cannot be read ({type(cause).__name__})."
            raise self.error(name, problem) from cause
        # Outside of `except`, to have no context: its frames hold the refused value.
        if not self.origin(name):
            # The default was refused: only that of a required option is.
            problem = f"is not set. Define {setting_name(name)} in the settings, or "
            problem += f"{name!r} in the OPTIONS of the mailer. {option.remedy}"
        raise self.error(name, problem, key=key)

    def origin(self, name: str) -> str:
        """Return the place where an option is set, or "" if it is not set."""
        given = self._name_given(name)
        if given in self._of_tenant:
            return _place_of_tenant(self.tenant, given)
        if given in self.given:
            if self.alias is None or given in self._of_code & {*self.keywords}:
                return f"the constructor keyword {given}"
            return f"MAILERS[{self.alias!r}]['OPTIONS'][{given!r}]"
        found = self._settings.value
        return next((place for place in _PLACES.get(name, ()) if place in found), "")

    def refuse_unknown(self) -> None:
        """Raise for a keyword or an ANYMAIL setting that would have no effect."""
        for name in self.given:
            own = name in self._of_tenant
            known = _OPTIONS_OF_TENANTS if own else self._options
            known_as = "api_token" if name == "password" and not own else name
            if known_as not in known:
                problem = f"is not an option. {suggestion(name, known)}"
                raise self.error(name, problem)
        names = _in_anymail(self._settings.value)
        for name, hint in unknown_settings(names).items():
            raise self._error(f"{names[name]} is not an option. {hint}")

    def error(
        self, name: str, problem: str, *, key: str = ""
    ) -> AnymailConfigurationError:
        """Make the error, of Django's type for its origin, to say that `name` is wrong."""
        return self._error(f"{self.origin(name) or name}{key} {problem}")

    def snapshot(self) -> Hidden:
        """Return all values that were found, and those inside of dicts and lists."""
        stack: list[Any] = []
        for name, value in self._settings.value.items():
            if name != "MAILERS":  # the OPTIONS in use are among the given
                stack += (name, value)
        for name in sorted(self.given):
            stack += (name, self.given[name].value)
        values = []
        while stack:
            value = stack.pop()
            values.append(value)
            if issubclass(type(value), dict):
                stack += (*value, *value.values())
            elif issubclass(type(value), list | tuple):
                stack += value
        return Hidden(values)

    def _name_given(self, name: str) -> str:
        """Return the keyword of an option; `password` overrides `api_token`."""
        password = name == "api_token" and "password" in self.given
        return "password" if password else name

    def _raw(self, name: str) -> Any:
        given = self._name_given(name)
        if given in self.given:
            return self.given[given].value
        return self._settings.value.get(self.origin(name), _OPTIONS[name].default)

    def _error(self, text: str) -> AnymailConfigurationError:
        if self.alias is None:
            return AnymailConfigurationError(text)
        # InvalidMailer puts the alias in front: do not repeat it.
        named = text.startswith("MAILERS[")
        return AnymailInvalidMailer(text, alias=None if named else self.alias)


def _place_of_tenant(tenant: str | None, name: object) -> str:
    return f"tenants({tenant!r})[{name!r}]"


def build_backend_config(reader: SettingsReader) -> BackendConfig:
    """Validate what a reader finds."""
    relay = _relay_config(reader)
    for name in reader.given.keys() & set(WEBHOOK_OPTIONS):
        reader.get(name)
    config = BackendConfig(
        relay=relay,
        correlation_key=reader.get("correlation_key"),
        send_defaults=reader.get(_GENERAL_DEFAULTS) | reader.get("send_defaults"),
        fail_silently=reader.get("fail_silently"),
        **{name: reader.get(name) for name in ANYMAIL_OPTIONS},
        keywords=reader.keywords,
        tenant=reader.get("tenant"),
        tenants=reader.get("tenants"),
        reader=Hidden(reader),
    )
    reader.refuse_unknown()
    return config


def _queue_config(reader: SettingsReader) -> QueueConfig:
    config = QueueConfig(
        **{name: reader.get(name) for name in _QUEUE_OPTIONS}, keywords=reader.keywords
    )
    reader.refuse_unknown()
    return config


def build_webhook_config(reader: SettingsReader) -> WebhookConfig:
    """Validate what a reader finds."""
    return WebhookConfig(
        signing_secrets=reader.get("signing_secret"),
        dedupe=reader.get("webhook_dedupe"),
        correlation_key=reader.get("correlation_key"),
        tenants=reader.get("tenants"),
        reader=Hidden(reader),
    )


def _relay_config(reader: SettingsReader) -> RelayConfig:
    token, host = reader.get("api_token"), reader.get("host")
    port, security = _port_and_security(reader, host)
    pool = reader.get("pool")
    batch_connections = reader.get("batch_connections")
    if pool and (batch_connections or 1) > pool.max_size:
        problem = f"must not exceed the pool's max_size, {pool.max_size}"
        raise reader.error("batch_connections", f"{problem}, or that must be raised.")
    idempotency = reader.get("idempotency")
    endpoint = Endpoint(
        token=token,
        host=host,
        port=port,
        security=security,
        pool=pool or PoolConfig(),
        pooled=pool is not None,
        tenant=reader.tenant,
        **{name: reader.get(name) for name in _OF_THE_ENDPOINT},
    )
    return RelayConfig(
        endpoint=endpoint,
        batch_connections=batch_connections,
        # A relay that ignores the key would deliver a repeated message twice.
        idempotency=_knows_idempotency(host) if idempotency is None else idempotency,
        **{name: reader.get(name) for name in _OF_THE_RELAY},
    )


def _port_and_security(reader: SettingsReader, host: str) -> tuple[int, str]:
    port, security = reader.get("port"), reader.get("security")
    if security is None:
        if port not in SECURITY_BY_PORT:
            known = ", ".join(map(str, SECURITY_BY_PORT))
            raise reader.error(
                "port",
                f"is {port}, which is none of {known}: "
                'set security="tls" or security="starttls" as well.',
            )
        return port, SECURITY_BY_PORT[port]
    if not reader.origin("port"):
        port = _PORT_BY_SECURITY[security]
    if security == "plaintext" and not is_loopback(host):
        raise reader.error(
            "security",
            f'must not be "plaintext" for {host!r}: mail and token would be sent in '
            'clear. Use "tls" or "starttls"; plaintext is for a loopback host.',
        )
    return port, security


def _knows_idempotency(host: str) -> bool:
    name = host.lower()
    return name == "lettermint.co" or name.endswith(".lettermint.co")
