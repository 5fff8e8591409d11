"""What to do about a failure: the last line that `test_lettermint` prints."""

from __future__ import annotations

import re
from collections.abc import Callable

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

#: What OpenSSL, or `connect`, says (in lower case).
_TLS = {
    "has expired": "date",
    "not yet valid": "date",
    "mismatch": "name",
    "self-signed": "issuer",
    "self signed": "issuer",
    "issuer": "issuer",
    "starttls on": "starttls",
    "unsupported protocol": "old",
    "protocol version": "old",
}

_BY_MEANING = {
    "date": "Look at this machine's clock first. If it is right, the certificate is not: "
    "ask those who run the relay (for smtp.lettermint.co: Lettermint's support).",
    "name": "Set `host` to a name that is in the certificate: smtp.lettermint.co, not an "
    "alias of yours or an IP address.",
    "issuer": "If this is Lettermint: is a proxy or virus scanner in between, or does "
    "this machine lack CA certificates (Debian: the package ca-certificates)? For a "
    "relay of your own, set `ca_file` to its authority.",
    "starttls": "Remove `port` and `security` from the settings: the default, 465, "
    f"speaks TLS from the first byte, so nobody can strip STARTTLS. {_SCAN}.",
    "old": "The server knows no TLS 1.2, so it is not Lettermint's: check `host`.",
}

#: An error's last clause, if it names attributes: for those who catch it.
_FOR_CODE = re.compile(r"; [^;]*\berror\.\w[^;]*$")

_BY_STEP = {
    "DNS": "Check the spelling of `host`; if it is right, this machine (or container) "
    "cannot resolve names: try `getent hosts smtp.lettermint.co` on it.",
    "TCP": "Many hosting providers and firewalls block outgoing mail ports: "
    f"{_SCAN} and says which `port` to set.",
}


class Failed(Exception):
    """A step did not succeed; `next_step` says what to do about it."""

    def __init__(self, error: Exception, step: str, next_step: str = "") -> None:
        self.error = error
        self.step = step
        self.next_step = next_step or advise(error, step)
        foreign = self.next_step == _OTHERWISE
        text = f"{type(error).__name__}: {error}" if foreign else str(error)
        super().__init__(_FOR_CODE.sub("", text))

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
    """Return why there is no connection: what the relay said, or else what happened."""
    if error.smtp_code:
        return f"{error.smtp_code} {error.smtp_error.decode()}"
    return str(error).partition(". Nothing was sent")[0]


def advise(error: Exception, step: str) -> str:
    """Return what to do about an error that came at a step."""
    if isinstance(error, LettermintError) and error.smtp_code and error.transient:
        return _LATER
    for kind, advice in _ADVICE.items():
        if isinstance(error, kind):
            return advice(error, step) if callable(advice) else advice
    return _OTHERWISE


def _connect(error: Exception, step: str) -> str:
    if step in _BY_STEP:
        return _BY_STEP[step]
    if step == "TLS":
        return _tls(error, step)
    if "timed out" in str(error):
        return (
            "The server is silent. A port with TLS from the first byte (465) needs "
            'security="tls", the others "starttls"; a slow network needs a higher '
            f"`timeout`. {_SCAN}."
        )
    return f"Do `host` and `port` belong to an SMTP relay? {_SCAN}."


def _tls(error: Exception, step: str) -> str:
    text = str(error).lower()
    for sign, meaning in _TLS.items():
        if sign in text:
            return _BY_MEANING[meaning]
    return (
        "Does the port speak TLS in this way? 465 does from the first byte "
        '(security="tls"), the others after STARTTLS (security="starttls"): remove '
        f"`security` from the settings to follow the port. {_SCAN}."
    )


def _login(error: Exception, step: str) -> str:
    if not getattr(error, "smtp_code", 0):
        return (
            "Is this Lettermint's relay? Check `host` and `port`, and remove "
            "`auth_mechanism` from the settings."
        )
    return (
        "In the Lettermint dashboard, open the project, check that SMTP is enabled, and "
        "copy its sending token into LETTERMINT_API_TOKEN (`api_token`). A team token "
        "(lm_team_…) cannot send; a token with an IP allowlist must list this machine."
    )


def _lost(error: Exception, step: str) -> str:
    advice = "Nothing was sent: run it again."
    if "timed out" in str(error):
        return f"{advice} If it keeps failing, raise `timeout`, or try another port: {_SCAN}."
    return (
        f"{advice} If it keeps failing, something on the way cuts connections: {_SCAN}."
    )


_LATER = (
    "The relay's reply says why. Wait some minutes and run it again; if that does not "
    "help, show the reply to Lettermint's support."
)
_OTHERWISE = (
    "This comes from the project, most likely from a receiver of "
    "anymail.signals.pre_send: --traceback shows the line."
)

_ADVICE: dict[
    type[Exception] | tuple[type[Exception], ...], str | Callable[[Exception, str], str]
] = {
    ConnectFailed: _connect,
    TLSFailed: _tls,
    AuthenticationFailed: _login,
    SenderRefused: "Verify the sender's domain in the Lettermint dashboard, or take a "
    "sender of a verified domain: --from, and DEFAULT_FROM_EMAIL in the settings.",
    RecipientsRefused: "Check the address and the project's suppression list; without "
    "an address, the mail goes to ok@testing.lettermint.co, which takes all.",
    MessageRefused: "The reply says why. Does the project have the route (--route), and "
    "do tag and metadata keep to Lettermint's rules?",
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
