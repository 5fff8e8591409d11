"""Lettermint's webhooks as Anymail's `tracking` and `inbound` signals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NoReturn

from anymail import signals
from anymail.exceptions import (
    AnymailConfigurationError,
    AnymailWebhookValidationFailure,
)
from anymail.webhooks.base import AnymailBaseWebhookView
from django.http import HttpRequest, HttpResponse, UnreadablePostError

from django_lettermint.conf import (
    Secret,
    hide,
    tenant_webhook_config,
    webhook_config,
)
from django_lettermint.exceptions import LettermintInvalidMessage

from .dedupe import run_once
from .events import (
    INBOUND,
    TEST,
    TRACKING_EVENTS,
    WebhookEvent,
    read_event,
    tracking_event,
)
from .inbound import inbound_event

if TYPE_CHECKING:
    from anymail.signals import AnymailEvent
    from django.dispatch import Signal
    from django.http.response import HttpResponseBase

    from django_lettermint.conf import WebhookConfig

logger = logging.getLogger("django_lettermint.webhooks")

#: Seconds after which Lettermint may deliver an event again that is being handled.
RETRY_AFTER = 60


class LettermintWebhookView(AnymailBaseWebhookView):
    """Verifies signed events and sends each of them to a signal once."""

    esp_name = "Lettermint"
    http_method_names = ["post"]  # noqa: RUF012 -- Django's own annotation has no ClassVar
    # The signature protects more than basic authentication; both can be used together.
    warn_if_no_basic_auth = False

    #: The secret of this URL's webhook, or a list of several: a keyword of `as_view()`,
    #: an attribute or a property of a subclass, or set in `setup()`. If the class
    #: attribute is None, the settings have it; any other None means that no event is
    #: accepted.
    signing_secret: object = None
    #: In bytes. Django's DATA_UPLOAD_MAX_MEMORY_SIZE is too small for mails.
    max_body_size: int = 0

    signal: Signal  # type: ignore[assignment]  # Anymail declares None
    #: The tenant that the URL names; receivers find it in `event.tenant`.
    tenant: str | None = None
    config: WebhookConfig
    payload: Mapping[str, Any]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """Return the view; raise AnymailConfigurationError if the SDK is missing."""
        if "signing_secret" in initkwargs:
            # Hidden: debug pages show the keywords of a view.
            initkwargs["signing_secret"] = hide(initkwargs["signing_secret"])
            initkwargs["signing_secret"] = webhook_config(initkwargs).signing_secrets
        _load_verify()
        return super().as_view(**initkwargs)

    def __setattr__(self, name: str, value: object) -> None:
        # Hidden: error trackers show the attributes of a view.
        super().__setattr__(name, hide(value) if name == "signing_secret" else value)

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Answer 200 when the receivers have run, and 4xx if the event is not genuine.

        An exception of a receiver propagates, as in Anymail: Django answers 500, and
        Lettermint delivers the event again. The answer is 503 while another process
        handles the same event.
        """
        if kwargs.get("tenant") is not None:
            self.tenant = str(kwargs["tenant"])  # path converters give any class
        try:
            self.config = self._look_up_config()
            self.run_validators(request)
            events = self.parse_events(request)
        except AnymailWebhookValidationFailure as error:
            # Not left to Django, whose debug page would show details.
            logger.warning("Lettermint webhook refused: %s", error.args[0])
            return HttpResponse(status=error.status_code or 400)
        if all(map(self._deliver, events)):
            return HttpResponse()
        return HttpResponse(status=503, headers={"Retry-After": str(RETRY_AFTER)})

    def validate_request(self, request: HttpRequest) -> None:
        """Check size, signature, age and JSON; Anymail checks basic authentication."""
        secrets = self.config.signing_secrets
        if not secrets and self.tenant is not None:
            # Refused as a wrong signature: the answer must not reveal which tenants
            # exist.
            secrets = (Secret(token_hex()),)
        if not secrets:
            _refuse("no signing secret is set (LETTERMINT_SIGNING_SECRET)", status=403)
        verify = _load_verify()
        try:
            self.payload = verify(self._body(request), request.headers, secrets)
        except ValueError as error:
            _refuse(str(error))

    def parse_events(self, request: HttpRequest) -> list[AnymailEvent]:
        """Return the Anymail event, or an empty list for a test event."""
        try:
            event = read_event(self.payload)
            return [] if event.type == TEST else self.to_anymail(event)
        except ValueError as error:
            _refuse(str(error))

    def to_anymail(self, event: WebhookEvent) -> list[AnymailEvent]:
        """Return the events to send to this view's signal."""
        raise NotImplementedError

    def _look_up_config(self) -> WebhookConfig:
        """Read the settings or, if the URL names a tenant, the tenant's options.

        An unknown tenant has no secret. If the lookup fails, raises
        AnymailConfigurationError: the answer is 500, and Lettermint delivers again.
        """
        own = self._own_secret()
        if self.tenant is None or own:
            return webhook_config(own)
        config = webhook_config()
        try:
            return tenant_webhook_config(config, self.tenant)
        except LettermintInvalidMessage as error:
            unknown = error
        # Outside of the block: the traceback of `unknown` may hold the tenant's secrets.
        if unknown.transient:
            raise AnymailConfigurationError(str(unknown)) from unknown.__cause__
        logger.warning("Lettermint webhook: %s", unknown)
        return replace(config, signing_secrets=())

    def _own_secret(self) -> dict[str, Any]:
        """Return the option `signing_secret` if the class or this request has one."""
        of_class = type(self).signing_secret
        if of_class is None and "signing_secret" not in vars(self):
            return {}
        return {"signing_secret": hide(self.signing_secret)}

    def _body(self, request: HttpRequest) -> bytes:
        limit, body = self.max_body_size, b""
        try:
            size = int(request.META.get("CONTENT_LENGTH") or 0)
            if size <= limit:  # 0 if none is declared: chunked, over ASGI
                body = request.read(limit + 1)
        except (ValueError, UnreadablePostError):
            _refuse("request_unreadable")
        if max(size, len(body)) > limit:
            _refuse("request_too_large", status=413)
        return body

    def _deliver(self, event: AnymailEvent) -> bool:
        event.tenant = self.tenant  # type: ignore[attr-defined]
        send = partial(
            self.signal.send, sender=type(self), event=event, esp_name=self.esp_name
        )
        if self.config.dedupe:
            return run_once(event.event_id, send, tenant=self.tenant)
        send()
        return True


class LettermintTrackingWebhookView(LettermintWebhookView):
    """Sends events about sent mail to Anymail's `tracking` signal."""

    signal = signals.tracking
    max_body_size = 2**20

    def to_anymail(self, event: WebhookEvent) -> list[AnymailEvent]:
        """Return the event; its type is UNKNOWN if the package does not know it."""
        if event.type == INBOUND:
            _wrong_url(event, right="lettermint/inbound/")
        return [tracking_event(event, correlation_key=self.config.correlation_key)]


class LettermintInboundWebhookView(LettermintWebhookView):
    """Sends received mail to Anymail's `inbound` signal."""

    signal = signals.inbound
    # Lettermint's 25 MB a mail, attachments in base64, and room for JSON.
    max_body_size = 40 * 2**20

    def to_anymail(self, event: WebhookEvent) -> list[AnymailEvent]:
        """Return the received mail, or nothing for event types without a mail."""
        if event.type in TRACKING_EVENTS:
            _wrong_url(event, right="lettermint/tracking/")
        return [inbound_event(event)] if event.type == INBOUND else []


def _load_verify() -> Callable[..., dict[str, Any]]:
    # Imported late: the package works without the SDK, which also installs httpx.
    try:
        from .signature import verify
    except ImportError as error:
        raise AnymailConfigurationError(
            "Lettermint's webhooks need the official `lettermint` package, which cannot be "
            'imported. Run `pip install "django-lettermint-smtp[webhooks]"`.'
        ) from error
    return verify


def _refuse(reason: str, *, status: int = 400) -> NoReturn:
    raise AnymailWebhookValidationFailure(reason, status_code=status) from None


def _wrong_url(event: WebhookEvent, *, right: str) -> NoReturn:
    # The answer is 500 and not 4xx, so that Lettermint keeps the event until the
    # webhook's URL is corrected.
    raise AnymailConfigurationError(
        f"Lettermint sent {event.type} to the wrong webhook URL. In Lettermint's "
        f"dashboard, set the URL of the webhook for these events to …/{right}."
    )
