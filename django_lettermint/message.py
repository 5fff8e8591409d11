"""Route, tag, metadata, idempotency key and tenant on Django's messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from functools import wraps
from inspect import isasyncgenfunction, iscoroutine, isgeneratorfunction
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from anymail.exceptions import AnymailUnsupportedFeature
from anymail.message import AnymailStatus
from anymail.utils import UNSET as ANYMAIL_UNSET
from asgiref.sync import iscoroutinefunction
from django.core import signing
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils.functional import LazyObject, Promise

from .exceptions import LettermintInvalidMessage
from .extras import (
    TENANT,
    Layer,
    extract_extras,
    fields,
    invalid_value,
    merge,
    render,
    resolve,
    short_repr,
    tenant_name,
)

# For type checkers: "not given", of no type that a caller could mean.
UNSET: Any = ANYMAIL_UNSET

_Message = TypeVar("_Message", bound=EmailMessage)
_P = ParamSpec("_P")
_R = TypeVar("_R")

_ATTRIBUTES = ("route", "tag", "metadata", "idempotency_key")
#: Attributes of a message that hold extras, in our own terms and in Anymail's.
SOURCES = (*_ATTRIBUTES, "tags", "esp_extra")
_ESP_EXTRA = ("route", "tag", "idempotency_key")
#: One value for each recipient: a header has one for all.
_NOT_HEADERS = ("merge_metadata", "merge_headers")

_active: ContextVar[Layer] = ContextVar(
    "django_lettermint_extras", default=MappingProxyType({})
)


class LettermintMessage(EmailMultiAlternatives):
    """A message with Lettermint's extras; extras that are not given stay unset.

    None keeps a field's lower layers (raw headers, `extras()` block, send defaults) off.
    """

    route: str | None
    tag: str | None
    metadata: Mapping[str, object] | None
    idempotency_key: str | None
    #: The tenant it is sent for; None for no tenant, with the token of the settings.
    tenant: str | None
    #: Its delivery status; `status` is None until it was sent.
    anymail_status: AnymailStatus

    def __init__(
        self,
        *args: Any,
        route: str | None = UNSET,
        tag: str | None = UNSET,
        metadata: Mapping[str, object] | None = UNSET,
        idempotency_key: str | None = UNSET,
        tenant: str | None = UNSET,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.anymail_status = AnymailStatus()
        values = (route, tag, metadata, idempotency_key)
        vars(self).update(_given(zip(_ATTRIBUTES, values, strict=True)))
        if tenant is not UNSET:
            self.tenant = tenant


#: Such functions run after the block has ended: their mail would have another tenant.
_TOO_LATE = (
    "extras() decorates no async function and no generator: "
    "write `with extras(…):` inside of it"
)


class _Block:
    """Extras for all that is sent inside of a `with` statement or a decorated function."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values
        self._tokens: list[Token[Layer]] = []

    def __enter__(self) -> None:
        layer = _given((name, _non_lazy(each)) for name, each in self._values.items())
        render(resolve(layer))  # a bad value fails here, where it is written
        if layer.get("tenant") is not None:
            tenant_name(layer["tenant"])
        self._tokens.append(_active.set(merge(_active.get(), layer)))

    def __exit__(self, *error: object) -> None:
        _active.reset(self._tokens.pop())

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        if (
            iscoroutinefunction(function)
            or isgeneratorfunction(function)
            or isasyncgenfunction(function)
        ):
            raise TypeError(_TOO_LATE)

        @wraps(function)
        def inside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with _Block(self._values):
                found = function(*args, **kwargs)
            if iscoroutine(found):  # as from `dispatch()` of an async view
                found.close()
                raise TypeError(_TOO_LATE)
            return found

        return inside


def extras(
    *,
    route: str | None = UNSET,
    tag: str | None = UNSET,
    metadata: Mapping[str, object] | None = UNSET,
    tenant: str | None = UNSET,
) -> _Block:
    """Set extras and the tenant of every message sent inside the block.

    Inner blocks win, per field and per metadata key. There is no idempotency key: one key
    for several messages would lose all but the first. It decorates plain functions, too.
    """
    values = {"route": route, "tag": tag, "metadata": metadata, "tenant": tenant}
    return _Block(values)


def active_extras() -> Layer:
    """Return the layer of the `extras()` blocks around the caller."""
    return _active.get()


def tenant_of(
    message: EmailMessage, otherwise: object, *, signed: object = UNSET
) -> object:
    """Return the tenant of a message: from attribute, header, block, or `otherwise`.

    `signed` is the result of `signed_tenant()`. Whether the result is a valid name is not
    checked. None means no tenant.
    """
    tenant = given_attributes(message, ["tenant"]).get("tenant", signed)
    if tenant is UNSET and message.extra_headers:
        tenant = signed_tenant(message)
    if tenant is UNSET:
        return _active.get().get("tenant", otherwise)
    return _non_lazy(tenant)


def signed_tenant(message: EmailMessage) -> Any:
    """Return the tenant that `freeze()` has written into the headers, or UNSET.

    Raises LettermintInvalidMessage if it was not written for this very message.
    """
    headers: object = message.extra_headers
    if not isinstance(headers, Mapping):  # refused elsewhere
        return UNSET
    found = [
        value for name, value in headers.items() if str(name).lower() == TENANT.lower()
    ]
    if not found:
        return UNSET
    with suppress(signing.BadSignature, ValueError):
        return _signer(message).unsign(str(found[0]))
    raise LettermintInvalidMessage(
        f"header {TENANT}: its signature does not match this message. Call freeze() last: "
        "do not change sender, recipients, subject or body after it, and do not copy the "
        "header to another message. All processes need the same SECRET_KEY"
    )


def _signer(message: EmailMessage) -> signing.Signer:
    """Return a signer for one message: the signature fits no other message.

    Attachments and alternatives are left out: queues write them anew.
    """
    signed = [
        str(message.from_email),
        sorted({str(each).strip() for each in message.recipients()}),
        str(message.subject),
        str(message.body).replace("\r\n", "\n"),
    ]
    digest = hashlib.sha256(json.dumps(signed).encode()).hexdigest()
    return signing.Signer(salt=f"django_lettermint.tenant:{digest}")


def _refuse(feature: str) -> None:
    text = f"Lettermint does not support {feature}"
    raise AnymailUnsupportedFeature(text)


def attribute_layer(
    message: EmailMessage, unsupported: Callable[[str], None] = _refuse
) -> dict[str, object]:
    """Read the extras in a message's attributes, Anymail's `tags` and `esp_extra` too.

    `unsupported` is called for features without a header; if it returns, they are left out.
    """
    layer: dict[str, object] = {}
    values = given_attributes(message, SOURCES)
    if not values:  # as with most messages
        return layer
    for spelling in _spellings(values, unsupported):
        for name, value in spelling.items():
            # A value hides the lower layers as None does, so the two do not conflict.
            if layer.get(name) is None:
                layer[name] = value
            elif value not in (None, layer[name]):
                rule = f"the message also has {short_repr(layer[name])}; give one"
                raise invalid_value(name, value, rule)
    return layer


def default_layer(
    defaults: Mapping[str, object], unsupported: Callable[[str], None] = _refuse
) -> dict[str, object]:
    """Read the extras in send defaults; our own names win over Anymail's.

    Defaults for Lettermint and for all of Anymail's backends are merged already, so a
    difference between them is no error of the message.
    """
    if not defaults:
        return {}
    if "tag" in defaults:
        defaults = {**defaults, "tags": []}
    own, esp_extra, tags = _spellings(defaults, unsupported)
    return {**tags, **esp_extra, **own}


def freeze(message: _Message) -> _Message:
    """Turn the extras that hold for a message now into raw headers, and return it.

    For queues that keep headers and lose attributes. Send defaults are not written; they
    apply when the message is sent. A None cannot be a header: it stays an attribute.
    """
    for field in _NOT_HEADERS:
        if _attribute(message, field) not in (UNSET, None):
            _refuse(f"{field} in freeze(): freeze one message for each recipient")
    found, headers = extract_extras(message.extra_headers or {})
    layer = merge(active_extras(), found, attribute_layer(message))
    frozen = resolve(layer)
    render(frozen)  # a line that cannot be folded fails now, not in the queue
    tenant = tenant_of(message, UNSET)
    name = None if tenant in (UNSET, None) else tenant_name(tenant)
    _freeze_sender(message, headers)
    message.extra_headers = headers | fields(frozen)
    attributes = vars(message)
    for each in (*SOURCES, "envelope_sender", "tenant"):
        if attributes.get(each) is not None:
            del attributes[each]
    layer["tenant"] = tenant
    attributes.update(
        {each: None for each in (*_ATTRIBUTES, "tenant") if layer.get(each, "") is None}
    )
    if name is not None:
        message.extra_headers[TENANT] = _signer(message).sign(name)
    return message


def _freeze_sender(message: EmailMessage, headers: dict[str, Any]) -> None:
    """Move the envelope sender to `from_email`, where Django takes it from."""
    sender = _attribute(message, "envelope_sender")
    if sender in (UNSET, None):
        return
    if str(sender).strip() in {"", "<>"}:
        _refuse("an empty envelope_sender in freeze(): no header can hold it")
    if not any(name.lower() == "from" for name in headers):
        headers["From"] = str(message.from_email)
    message.from_email = str(sender)


def given_attributes(message: EmailMessage, names: Iterable[str]) -> dict[str, Any]:
    """Return those of the attributes that a message has.

    An error in a property propagates, even AttributeError: otherwise the mail would be
    sent incomplete.
    """
    found = {}
    for name in names:
        value = getattr(message, name, UNSET)
        if value is UNSET and hasattr(type(message), name):
            value = getattr(message, name)
        if value is not UNSET:
            found[name] = value
    return found


def _attribute(message: EmailMessage, name: str) -> Any:
    return given_attributes(message, [name]).get(name, UNSET)


def _given(values: Any) -> dict[str, Any]:
    return {name: value for name, value in values if value is not UNSET}


def _non_lazy(value: Any) -> Any:
    """Turn lazy text into text, in a mapping too."""
    if isinstance(value, Mapping):
        return {_forced(key): _forced(entry) for key, entry in value.items()}
    return _forced(value)


def _forced(value: Any) -> Any:
    if isinstance(value, LazyObject):
        wrapped: Any = value.__reduce__()[1][0]  # as its pickled form has it
        return None if wrapped is None else str(wrapped)  # not the text "None"
    return str(value) if isinstance(value, Promise) else value


def _spellings(
    values: Mapping[str, Any], unsupported: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the layers that our own names, `esp_extra` and `tags` make."""
    return (
        {name: _non_lazy(values[name]) for name in _ATTRIBUTES if name in values},
        _from_esp_extra(values.get("esp_extra"), unsupported),
        _from_tags(values.get("tags", []), unsupported),
    )


def _from_tags(tags: Any, unsupported: Callable[[str], None]) -> dict[str, Any]:
    if tags is None:
        return {"tag": None}
    # Lazy text is a Collection too.
    is_text = isinstance(tags, str | bytes | Promise)
    if is_text or not isinstance(tags, Collection) or isinstance(tags, Mapping):
        raise invalid_value("tags", tags, "use a list with one tag")
    if len(tags) > 1:
        unsupported(f"multiple tags ({short_repr(tags)}): its SMTP relay reads one")
    return {"tag": _non_lazy(next(iter(tags)))} if tags else {}


def _from_esp_extra(extra: Any, unsupported: Callable[[str], None]) -> dict[str, Any]:
    if extra is None:
        return {}
    if not isinstance(extra, Mapping):
        raise invalid_value(
            "esp_extra", extra, f"use a mapping with any of {_ESP_EXTRA}"
        )
    for key in extra:
        if key not in _ESP_EXTRA:
            unsupported(
                f"esp_extra[{short_repr(key)}]; it takes {', '.join(_ESP_EXTRA)}"
            )
    return {key: _non_lazy(value) for key, value in extra.items() if key in _ESP_EXTRA}
