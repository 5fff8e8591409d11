"""The configuration for one tenant: its options, laid over those of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

from anymail.exceptions import AnymailConfigurationError
from django.core.exceptions import ObjectDoesNotExist

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import tenant_name

from .options import BackendConfig, WebhookConfig
from .settings import SettingsReader, build_backend_config, build_webhook_config
from .wrappers import Hidden, unwrap

_Config = TypeVar("_Config", BackendConfig, WebhookConfig)

#: What the current call of `send_messages()` has looked up, by the id of the configuration
#: that it is laid over and the tenant's name; None outside of a call. The configuration
#: is kept beside it: no other object can have its id meanwhile.
looked_up: ContextVar[dict[tuple[int, str], tuple[BackendConfig, Any]] | None] = (
    ContextVar("django_lettermint_tenants", default=None)
)


def tenant_config(config: BackendConfig, tenant: object) -> BackendConfig:
    """Return the configuration for a tenant's mail.

    Raises LettermintInvalidMessage if there is none; it is `transient` if the resolver
    itself failed.
    """
    name = tenant_name(tenant)
    key, kept = (id(config), name), looked_up.get()
    if kept is None:
        return _checked(_find(config, name, build_backend_config))
    if key not in kept:
        kept[key] = config, _find(config, name, build_backend_config)
    found: BackendConfig | LettermintInvalidMessage = kept[key][1]
    return _checked(found)


def tenant_webhook_config(config: WebhookConfig, tenant: object) -> WebhookConfig:
    """Return the configuration for a tenant's webhooks; raises as `tenant_config()`."""
    return _checked(_find(config, tenant_name(tenant), build_webhook_config))


def _checked(found: _Config | LettermintInvalidMessage) -> _Config:
    if not isinstance(found, LettermintInvalidMessage):
        return found
    error = LettermintInvalidMessage(*found.args)  # one for each message
    error.transient = found.transient
    raise error from found.__cause__


def _find(
    config: _Config, name: str, build: Callable[[SettingsReader], _Config]
) -> _Config | LettermintInvalidMessage:
    """Call the resolver; return an error, whose frames show no token, instead of raising."""
    if config.tenants is None:
        return LettermintInvalidMessage(
            f"tenant {name!r}: the option `tenants`, which finds its token, is not set"
        )
    try:
        options = Hidden(unwrap(config.tenants(name)))
        if isinstance(options.value, Mapping):
            return build(config.reader.value.for_tenant(name, options))
        kind = type(options.value).__name__
        problem = (
            f"tenant {name!r}: `tenants` must return a mapping of options, not {kind}"
        )
        return LettermintInvalidMessage(problem)
    except (LookupError, ObjectDoesNotExist):
        problem = (
            f"tenant {name!r}: the function in the option `tenants` does not know it"
        )
        return LettermintInvalidMessage(problem)
    except AnymailConfigurationError as error:
        failed = LettermintInvalidMessage(f"tenant {name!r}: {error}")
        failed.__cause__ = error.__cause__
        return failed
    except Exception as error:  # noqa: BLE001 - the application's, any kind
        problem = f"tenant {name!r} cannot be looked up now ({type(error).__name__})"
        failed = LettermintInvalidMessage(problem)
        failed.transient, failed.__cause__ = True, _without_frames(error)
        return failed


def _without_frames(error: BaseException) -> BaseException:
    """Drop the tracebacks: debug pages would show the resolver's variables with tokens."""
    chain: dict[int, BaseException] = {}  # by id: not all exceptions can be hashed
    following: list[BaseException | None] = [error]
    while following:
        each = following.pop()
        if each is not None and id(each) not in chain:
            chain[id(each)] = each
            each.__traceback__ = None
            following += (each.__cause__, each.__context__)
            if isinstance(each, BaseExceptionGroup):
                following += each.exceptions
    return error
