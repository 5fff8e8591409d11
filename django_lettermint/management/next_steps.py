"""What to do about a failure: the last line that `test_lettermint` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anymail.exceptions import AnymailCancelSend, AnymailError
from django.core.exceptions import ImproperlyConfigured

from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    LettermintError,
    MessageRefused,
    RecipientsRefused,
    SenderRefused,
    TLSFailed,
)

_SCAN = "`manage.py test_lettermint --scan-ports` tries every port from here"


class Failed(Exception):
    """A step did not succeed; `next_step` says what to do about it."""

    def __init__(
        self,
        error: Exception,
        step: str,
        next_step: str = "",
        *,
        tenant: str | None = None,
    ) -> None:
        self.error = error
        self.step = step
        self.next_step = next_step or advise(error, tenant)
        foreign = self.next_step == _OTHERWISE
        super().__init__(f"{type(error).__name__}: {error}" if foreign else str(error))

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        return {
            "type": type(self.error).__name__,
            "step": self.step,
            "message": str(self),
            "code": getattr(self.error, "smtp_code", 0) or None,
            "next_step": self.next_step,
        }


def brief(error: LettermintError) -> str:
    """Return why there is no connection: the relay's reply, or else what happened."""
    if error.smtp_code:
        return f"{error.smtp_code} {error.smtp_error.decode()}"
    return error.summary


def advise(error: Exception, tenant: str | None = None) -> str:
    """Return what to do about an error, of a tenant's mail if there is one."""
    if isinstance(error, LettermintError) and error.smtp_code and error.transient:
        return _LATER
    if isinstance(error, AuthenticationFailed):
        return _login(error, tenant)
    for kind, advice in _ADVICE.items():
        if isinstance(error, kind):
            return advice(error) if callable(advice) else advice
    return _OTHERWISE


def _connect(error: ConnectFailed) -> str:
    if error.timed_out and error.step not in _BY_STEP:
        return (
            "The server is silent. A port with TLS from the first byte (465) needs "
            'security="tls", the others "starttls"; a slow network needs a higher '
            f"`timeout`. {_SCAN}."
        )
    if error.step == "TCP" and not error.timed_out:
        return _NO_SERVER
    otherwise = f"Do `host` and `port` belong to an SMTP relay? {_SCAN}."
    return _BY_STEP.get(error.step, otherwise)


def _tls(error: TLSFailed) -> str:
    if error.step == "STARTTLS":
        return (
            "Remove `port` and `security` from the settings: the default, 465, speaks "
            f"TLS from the first byte, so STARTTLS cannot be stripped. {_SCAN}."
        )
    if error.verify_code:
        return _BY_VERIFY_CODE.get(error.verify_code, _ISSUER)
    return _BY_STEP["TLS"]


def _login(error: AuthenticationFailed, tenant: str | None) -> str:
    if not error.smtp_code:
        return (
            "Is this Lettermint's relay? Check `host` and `port`, and remove "
            "`auth_mechanism` from the settings."
        )
    project, place = "the project", "into LETTERMINT_API_TOKEN (`api_token`)"
    if tenant is not None:
        project = f"the project of tenant {tenant!r}"
        place = "to where `tenants` looks up its `api_token`"
    return (
        f"In the Lettermint dashboard, open {project}, check that SMTP is enabled, and "
        f"copy its sending token {place}. A team token (lm_team_…) cannot send; a token "
        "with an IP allowlist must list this machine."
    )


def _lost(error: ConnectionLost) -> str:
    advice = "Nothing was sent: run it again. If it keeps failing,"
    if error.timed_out:
        return f"{advice} raise `timeout`, or try another port: {_SCAN}."
    return f"{advice} a firewall or proxy on the way closes connections: {_SCAN}."


_NO_SERVER = (
    "No server listens on this port, or a firewall refuses the connection. If `host` is "
    "this machine, start the relay first: `manage.py lettermint_relay`. Otherwise, "
    f"{_SCAN} and says which `port` to set."
)
_BY_STEP = {
    "DNS": "Check the spelling of `host`; if it is right, this machine (or container) "
    "cannot resolve names: try `getent hosts smtp.lettermint.co` on it.",
    "TCP": "Many hosting providers and firewalls block outgoing mail ports: "
    f"{_SCAN} and says which `port` to set.",
    "TLS": "Does the port speak TLS 1.2 or later in this way? 465 does from the first "
    'byte (security="tls"), the others after STARTTLS (security="starttls"): remove '
    f"`security` from the settings to follow the port. {_SCAN}.",
}
_DATE = (
    "Check this machine's clock first. If it is right, the certificate is not valid now: "
    "ask the relay's operator (for smtp.lettermint.co: Lettermint's support)."
)
_NAME = (
    "Set `host` to a name that is in the certificate: smtp.lettermint.co, not an alias "
    "of yours or an IP address."
)
_ISSUER = (
    "If this is Lettermint: is a proxy or virus scanner in between, or does this machine "
    "lack CA certificates (Debian: the package ca-certificates)? For a relay of your "
    "own, set `ca_file` to its authority."
)
#: OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and
#: _IP_ADDRESS_MISMATCH.
_BY_VERIFY_CODE = {9: _DATE, 10: _DATE, 62: _NAME, 64: _NAME}
_LATER = (
    "The relay's reply says why. Wait some minutes and run it again; if that does not "
    "help, send the reply to Lettermint's support."
)
_OTHERWISE = (
    "This comes from the project, most likely from a receiver of "
    "anymail.signals.pre_send: --traceback shows the line."
)

_ADVICE: dict[
    type[Exception] | tuple[type[Exception], ...], str | Callable[[Any], str]
] = {
    ConnectFailed: _connect,
    TLSFailed: _tls,
    SenderRefused: "Verify the sender's domain in the Lettermint dashboard, or use a "
    "sender of a verified domain: --from, and DEFAULT_FROM_EMAIL in the settings.",
    RecipientsRefused: "Check the address and the project's suppression list; without "
    "an address, the mail goes to ok@testing.lettermint.co, which accepts all mail.",
    MessageRefused: "The reply says why. Does the project have the route (--route), and "
    "do tag and metadata follow Lettermint's rules?",
    ConnectionLost: _lost,
    DeliveryUnknown: "Look for the mail in the Lettermint dashboard before you send it "
    "again. If the relay is slow, raise `final_reply_timeout`.",
    LettermintError: "Run it again, and look at the pool's limits in the settings.",
    AnymailCancelSend: "Find the receiver of anymail.signals.pre_send that raised "
    "AnymailCancelSend: it stops other mails, too.",
    AnymailError: "Correct what is named above: in this command's options or, if it is "
    "not there, in `send_defaults`.",
    (ImproperlyConfigured, ImportError): "Correct this setting, then run `manage.py "
    "check` to see whether others are wrong.",
}
