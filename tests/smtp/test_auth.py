"""The login: one attempt, and no trace of the token."""

from __future__ import annotations

import base64
import hmac
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    LettermintError,
)
from django_lettermint.results import Phase
from django_lettermint.smtp import RelayState, connect
from tests.faultserver import (
    TOKEN,
    FaultServer,
    On,
    drop,
    endless,
    hang,
    raw,
    reply,
)
from tests.sending import (
    SHORT,
    cases,
    relay,
    session,
    transaction,
)
from tests.smtp.connecting import (
    MECHANISMS,
    TLS_MODES,
    failure,
    soon,
)

if TYPE_CHECKING:
    from tests.faults import Action


# -- AUTH ------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_logs_in(mechanism: str, tls: str) -> None:
    with FaultServer(auth=(mechanism,), tls=tls) as server, session(server):
        assert server.logins == [(mechanism, "lettermint", True)]
        assert server.violations == []


def test_plain_is_preferred_unless_the_option_names_another_mechanism() -> None:
    with FaultServer(auth=("CRAM-MD5", "LOGIN", "PLAIN")) as server:
        for mechanism in (None, "LOGIN", "CRAM-MD5"):
            with session(server, auth_mechanism=mechanism):
                pass
        used = [each.mechanism for each in server.logins]
        assert used == ["PLAIN", "LOGIN", "CRAM-MD5"]


@pytest.mark.parametrize(
    ("offer", "mechanism"),
    [
        ("AUTH=PLAIN LOGIN", "PLAIN"),
        ("AUTH=LOGIN", "LOGIN"),
        ("auth=login", "LOGIN"),
        ("AUTH PLAIN LOGIN\nAUTH XOAUTH2", "PLAIN"),
        ("AUTH XOAUTH2\nAUTH=LOGIN", "LOGIN"),
        ("AUTH=XOAUTH2\nAUTH LOGIN", "LOGIN"),
        ("AUTH\tPLAIN", "PLAIN"),
        ("AUTH  LOGIN\tPLAIN", "PLAIN"),
        ("AUTH\nAUTH PLAIN", "PLAIN"),
    ],
)
def test_offers_of_auth_are_merged(offer: str, mechanism: str) -> None:
    script = [On("ehlo", do=reply(250, f"relay\n{offer}\nPIPELINING"))]
    with FaultServer(script) as server, session(server) as held:
        assert server.logins == [(mechanism, "lettermint", True)]
        assert "PIPELINING" in held.features


@pytest.mark.parametrize(
    ("auth", "wish", "said"),
    [
        ((), None, "offers AUTH (nothing), not PLAIN or LOGIN or CRAM-MD5"),
        (("XOAUTH2",), None, "offers AUTH XOAUTH2"),
        (("PLAIN",), "CRAM-MD5", "offers AUTH PLAIN, not CRAM-MD5"),
    ],
)
@pytest.mark.parametrize("tls", ["implicit", "starttls", None])
def test_a_server_without_a_known_mechanism_is_an_error(
    auth: tuple[str, ...], wish: str | None, said: str, tls: str | None
) -> None:
    with FaultServer(auth=auth, tls=tls) as server:
        error = failure(server, auth_mechanism=wish)
        assert server.logins == []
        assert server.connections == 1
    assert isinstance(error, AuthenticationFailed)
    assert said in str(error)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_token_costs_one_login(mechanism: str) -> None:
    with FaultServer(auth=tuple(MECHANISMS)) as server:
        error = failure(server, api_token="lm_wrong", auth_mechanism=mechanism)
        assert server.logins == [(mechanism, "lettermint", False)]
        assert server.connections == 1
    assert isinstance(error, AuthenticationFailed)
    assert error.smtp_code == 535
    assert not error.transient
    assert f"535 at AUTH {mechanism}" in str(error)
    assert "check LETTERMINT_API_TOKEN" in str(error)
    assert "lm_wrong" not in str(error)


@pytest.mark.parametrize("code", [503, 534, 535, 250, 334])
def test_only_235_is_a_successful_login(code: int) -> None:
    with FaultServer([On("auth", do=reply(code))]) as server:
        error = failure(server)
        assert len(server.logins) == 1
    assert isinstance(error, AuthenticationFailed)


@pytest.mark.parametrize(
    ("do", "code"),
    [
        (reply(421, "bye", close=True), 421),
        (reply(432, "4.7.12 change your password"), 432),
        (reply(454, "4.7.0 later"), 454),
        (drop(), 0),
        (hang(), 0),
    ],
    ids=["421", "432", "454", "drop", "hang"],
)
def test_a_login_that_fails_for_now_is_a_failed_connection(
    do: Action, code: int
) -> None:
    with FaultServer([On("auth", do=do)]) as server:
        error = failure(server, timeout=SHORT)
        assert len(server.logins) == 1
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.transient) == (code, True)
    assert (error.step, error.phase) == ("AUTH", Phase.AUTH)


@pytest.mark.parametrize(
    ("auth", "code"), [("LOGIN", 535), ("CRAM-MD5", 535), ("LOGIN", 454)]
)
def test_a_login_refused_early_does_not_reveal_the_token(auth: str, code: int) -> None:
    with FaultServer([On("auth_cont", do=reply(code))], auth=(auth,)) as server:
        error = failure(server)
        blob = base64.b64encode(TOKEN.encode())
        assert all(blob not in received for received in server.received.values())
    expected = AuthenticationFailed if code >= 500 else ConnectFailed
    assert isinstance(error, expected)


def test_a_login_may_be_refused_after_the_user_name() -> None:
    script = [On("auth_cont", times=1, do=reply(334, "VXNlcm5hbWU6"))]
    script.append(On("auth_cont", do=reply(535, "no")))
    with FaultServer(script, auth=("LOGIN",)) as server:
        assert isinstance(failure(server), AuthenticationFailed)


@pytest.mark.parametrize(
    "challenge", cases(signs="!!!", nothing="", umlaut="caf\u00e9")
)
def test_a_challenge_that_is_not_base64_is_not_answered(challenge: str) -> None:
    script = [On("auth_cont", do=reply(334, challenge))]
    with FaultServer(script, auth=("CRAM-MD5",)) as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert "challenge is not base64" in str(error)
    assert error.phase is Phase.AUTH


@pytest.mark.parametrize(
    "do",
    cases(
        hang=hang(), challenges=endless(b"334 \r\n"), challenge=endless(b"334-x\r\n")
    ),
)
def test_an_endless_login_is_bounded(do: Action) -> None:
    with FaultServer([On("auth_cont", do=do)], auth=("LOGIN",)) as server:
        error = failure(server, timeout=SHORT)
        assert server.wait_for(lambda: server.open_connections == 0)
    assert isinstance(error, ConnectFailed | AuthenticationFailed)


# -- secrets ---------------------------------------------------------------------------


def token_forms(mechanism: str) -> set[str]:
    """Return the forms in which a relay may echo the token."""
    token = TOKEN.encode()
    challenge = b"<1896.697170952@fault.test>"
    digest = hmac.new(token, challenge, "md5").hexdigest().encode()
    responses = {
        "PLAIN": b"\0lettermint\0" + token,
        "LOGIN": token,
        "CRAM-MD5": b"lettermint " + digest,
    }
    return {
        TOKEN,
        base64.b64encode(token).decode(),
        base64.b64encode(responses[mechanism]).decode(),
    }


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("code", [535, 454])
def test_an_echoed_login_is_redacted(mechanism: str, code: int) -> None:
    secrets = token_forms(mechanism)
    echo = reply(code, "you said " + " ".join(sorted(secrets)))
    with FaultServer([On("auth", do=echo)], auth=(mechanism,)) as server:
        error = failure(server)
    for text in (str(error), error.smtp_error.decode()):
        assert not any(secret in text for secret in secrets)
    assert "you said *** ***" in str(error)


def test_an_invalid_reply_is_redacted() -> None:
    with FaultServer([On("auth", do=raw(TOKEN.encode() + b"!\r\n"))]) as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert "not an SMTP reply: '***!'" in str(error)


def test_a_greeting_with_the_token_is_redacted() -> None:
    with FaultServer([On("banner", do=reply(554, f"go away {TOKEN}"))]) as server:
        assert "go away ***" in str(failure(server))


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
def test_a_later_reply_with_the_token_is_redacted(phase: Any) -> None:
    with FaultServer([On(phase, do=reply(550, f"5.7.1 {TOKEN} is off"))]) as server:
        one = transaction()
        with session(server) as held:
            held.send(one)
        assert str(one.reply) == "550 5.7.1 *** is off"


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    "do", cases(drop=drop(), refused=reply(535), junk=raw(b"?\r\n"))
)
def test_no_frame_of_an_error_holds_the_token(do: Action, mechanism: str) -> None:
    # Django's debug page shows the local variables of each frame of a traceback.
    with FaultServer([On("auth", do=do)], auth=(mechanism,)) as server:
        config = relay(server)
        with pytest.raises(LettermintError) as raised:
            connect(config.endpoint, RelayState(), until=soon(), timeout=5)
    chain = (raised.value, raised.value.__cause__, raised.value.__context__)
    frames = [
        frame
        for error in chain
        if error
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__
    ]
    assert frames
    shown = repr([frame.f_locals for frame in frames])
    assert not any(secret in shown for secret in token_forms(mechanism))
