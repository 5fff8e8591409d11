"""The login: one attempt by one mechanism, and nothing of it ever shown."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from django_lettermint.exceptions import AuthenticationFailed
from django_lettermint.secret import Secret

if TYPE_CHECKING:
    from .replies import Reply
    from .talk import Talk


def authenticate(talk: Talk, features: Mapping[str, str]) -> None:
    """Log in; only 235 is success, and a refused token is not tried twice."""
    mechanism = _choose(talk, features)
    reply = MECHANISMS[mechanism](talk)
    if reply.code == 235:
        talk.steps.trace("AUTH", mechanism)
        return
    if 400 <= reply.code < 500:
        talk.steps.refused("AUTH", reply)
    raise AuthenticationFailed(
        f"{reply.code} at AUTH {mechanism} on {talk.steps.where}: check "
        "LETTERMINT_API_TOKEN; SMTP must be enabled for the project in the "
        f"dashboard (the relay said: {reply.text})"
    ).with_reply(reply.code, reply.text)


def _choose(talk: Talk, features: Mapping[str, str]) -> str:
    offered = features.get("AUTH", "").upper().split()
    wanted = talk.steps.config.endpoint.auth_mechanism
    candidates = [wanted] if wanted else list(MECHANISMS)
    for name in candidates:
        if name in offered:
            return name
    raise AuthenticationFailed(
        f"{talk.steps.where} offers AUTH {' '.join(offered) or '(nothing)'}, not "
        f"{' or '.join(candidates)}. Nothing was sent; check `host`, `port` and "
        "`auth_mechanism`"
    )


def _plain(talk: Talk) -> Reply:
    config = talk.steps.config
    before = f"\0{config.endpoint.username}\0"
    return _ask_secret(
        talk, "AUTH PLAIN ", lambda: config.endpoint.token.encoded(before)
    )


def _login(talk: Talk) -> Reply:
    config = talk.steps.config
    reply = talk.ask("AUTH", "AUTH LOGIN")
    if reply.code == 334:
        username = base64.b64encode(config.endpoint.username.encode()).decode("ascii")
        reply = talk.ask("AUTH", username)
    if reply.code == 334:
        reply = _ask_secret(talk, "", config.endpoint.token.encoded)
    return reply


def _cram_md5(talk: Talk) -> Reply:
    config = talk.steps.config
    reply = talk.ask("AUTH", "AUTH CRAM-MD5")
    if reply.code != 334:
        return reply
    try:
        challenge = base64.b64decode(reply.text, validate=True)
    except ValueError:
        challenge = b""
    if not challenge:
        talk.steps.fail("AUTH", "the CRAM-MD5 challenge is not base64")

    def respond() -> Secret:
        digest = hmac.new(
            config.endpoint.token.reveal().encode(), challenge, "md5"
        ).hexdigest()
        return Secret(digest).encoded(f"{config.endpoint.username} ")

    return _ask_secret(talk, "", respond)


def _ask_secret(talk: Talk, command: str, respond: Callable[[], Secret]) -> Reply:
    # Made where it is written, inside `Steps.take()`: no frame that an error carries
    # along has ever held it.
    def line() -> str:
        response = respond()
        talk.wire.hide(response)
        return command + response.reveal()

    return talk.ask("AUTH", line)


#: In the order of preference. CRAM-MD5 comes last: it costs a round trip more, and a
#: relay whose users all share one name can hardly look up one secret for it.
MECHANISMS: Mapping[str, Callable[[Talk], Reply]] = {
    "PLAIN": _plain,
    "LOGIN": _login,
    "CRAM-MD5": _cram_md5,
}
