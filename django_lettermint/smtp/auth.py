"""The login: one attempt by one mechanism; the token is never shown."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from django_lettermint.conf import Secret
from django_lettermint.exceptions import AuthenticationFailed

if TYPE_CHECKING:
    from .connect import Handshake
    from .replies import Reply


def authenticate(handshake: Handshake, features: Mapping[str, str]) -> None:
    """Log in; only 235 is success, and a refused token is not tried twice."""
    mechanism = _choose(handshake, features)
    reply = MECHANISMS[mechanism](handshake)
    if reply.code == 235:
        handshake.steps.trace("AUTH", mechanism)
        return
    if 400 <= reply.code < 500:
        raise handshake.steps.refused("AUTH", reply)
    tenant = handshake.endpoint.tenant
    place = f"`api_token` of tenant {tenant!r}" if tenant else "LETTERMINT_API_TOKEN"
    raise AuthenticationFailed(
        f"{reply.code} at AUTH {mechanism} on {handshake.steps.where}: check "
        f"{place}; SMTP must be enabled for the project in the "
        f"dashboard (the relay said: {reply.text})"
    ).with_reply(reply.code, reply.text)


def _choose(handshake: Handshake, features: Mapping[str, str]) -> str:
    offered = features.get("AUTH", "").upper().split()
    wanted = handshake.endpoint.auth_mechanism
    candidates = [wanted] if wanted else list(MECHANISMS)
    for name in candidates:
        if name in offered:
            return name
    summary = (
        f"{handshake.steps.where} offers AUTH {' '.join(offered) or '(nothing)'}, not "
        f"{' or '.join(candidates)}"
    )
    error = AuthenticationFailed(
        f"{summary}. Nothing was sent; check `host`, `port` and `auth_mechanism`"
    )
    error.summary = summary
    raise error


def _plain(handshake: Handshake) -> Reply:
    endpoint = handshake.endpoint
    before = f"\0{endpoint.username}\0"
    return _ask_secret(handshake, "AUTH PLAIN ", lambda: endpoint.token.encoded(before))


def _login(handshake: Handshake) -> Reply:
    endpoint = handshake.endpoint
    reply = handshake.command("AUTH", "AUTH LOGIN")
    if reply.code == 334:
        username = base64.b64encode(endpoint.username.encode()).decode("ascii")
        reply = handshake.command("AUTH", username)
    if reply.code == 334:
        reply = _ask_secret(handshake, "", endpoint.token.encoded)
    return reply


def _cram_md5(handshake: Handshake) -> Reply:
    endpoint = handshake.endpoint
    reply = handshake.command("AUTH", "AUTH CRAM-MD5")
    if reply.code != 334:
        return reply
    try:
        challenge = base64.b64decode(reply.text, validate=True)
    except ValueError:
        challenge = b""
    if not challenge:
        reason = "the CRAM-MD5 challenge is not base64"
        raise handshake.steps.failed("AUTH", reason, "try again later")

    def respond() -> Secret:
        digest = hmac.new(
            endpoint.token.reveal().encode(), challenge, "md5"
        ).hexdigest()
        return Secret(digest).encoded(f"{endpoint.username} ")

    return _ask_secret(handshake, "", respond)


def _ask_secret(
    handshake: Handshake, command: str, respond: Callable[[], Secret]
) -> Reply:
    # Called inside `Steps.run()`, which drops the traceback: no frame of an error holds
    # the secret.
    def line() -> str:
        response = respond()
        handshake.stream.redact(response)
        return command + response.reveal()

    return handshake.command("AUTH", line)


#: In the order of preference. CRAM-MD5 comes last: it takes another round trip, and the
#: relay must find the secret by the user name, which is the same for all projects.
MECHANISMS: Mapping[str, Callable[[Handshake], Reply]] = {
    "PLAIN": _plain,
    "LOGIN": _login,
    "CRAM-MD5": _cram_md5,
}
