"""The login: one attempt, and no trace of the token."""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING

import pytest

from django_lettermint.exceptions import AuthenticationFailed, ConnectFailed
from django_lettermint.results import Phase
from tests.faultserver import CHALLENGE, TOKEN, FaultServer, On, drop, hang, raw, reply
from tests.sending import SHORT, cases, session
from tests.smtp.helpers import failure

if TYPE_CHECKING:
    from tests.faults import Action

MECHANISMS = ["PLAIN", "LOGIN", "CRAM-MD5"]


@pytest.mark.parametrize(
    ("wish", "mechanism"), [(None, "PLAIN"), *((each, each) for each in MECHANISMS)]
)
def test_plain_is_used_unless_the_option_names_another_mechanism(
    wish: str | None, mechanism: str
) -> None:
    with (
        FaultServer(auth=reversed(MECHANISMS)) as server,
        session(server, auth_mechanism=wish),
    ):
        assert server.logins == [(mechanism, "lettermint", True)]
        assert server.violations == []


@pytest.mark.parametrize(
    ("offer", "mechanism"),
    [
        ("AUTH=PLAIN LOGIN", "PLAIN"),
        ("auth=login", "LOGIN"),
        ("AUTH PLAIN LOGIN\nAUTH XOAUTH2", "PLAIN"),
        ("AUTH XOAUTH2\nAUTH=LOGIN", "LOGIN"),
        ("AUTH=XOAUTH2\nAUTH LOGIN", "LOGIN"),
        ("AUTH\tPLAIN", "PLAIN"),
        ("AUTH CRAM-MD5\tLOGIN", "LOGIN"),
        ("AUTH\nAUTH CRAM-MD5", "CRAM-MD5"),
    ],
)
def test_offers_of_auth_are_merged(offer: str, mechanism: str) -> None:
    script = [On("ehlo", do=reply(250, f"relay\n{offer}\nPIPELINING"))]
    with FaultServer(script, auth=MECHANISMS) as server, session(server) as held:
        assert server.logins == [(mechanism, "lettermint", True)]
        assert "PIPELINING" in held.features


@pytest.mark.parametrize(
    ("auth", "wish", "said"),
    [
        ([], None, "offers AUTH (nothing), not PLAIN or LOGIN or CRAM-MD5"),
        (["PLAIN", "X"], "CRAM-MD5", "offers AUTH PLAIN X, not CRAM-MD5"),
    ],
)
def test_a_server_without_a_known_mechanism_is_an_error(
    auth: list[str], wish: str | None, said: str
) -> None:
    with FaultServer(auth=auth) as server:
        error = failure(server, auth_mechanism=wish)
        assert (server.logins, server.connections) == ([], 1)
    assert isinstance(error, AuthenticationFailed)
    assert said in str(error)
    assert said in error.summary


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_token_costs_one_login(mechanism: str) -> None:
    with FaultServer(auth=MECHANISMS) as server:
        error = failure(server, api_token="lm_wrong", auth_mechanism=mechanism)
        assert server.logins == [(mechanism, "lettermint", False)]
        assert server.connections == 1
    assert isinstance(error, AuthenticationFailed)
    assert (error.smtp_code, error.transient) == (535, False)
    assert f"535 at AUTH {mechanism}" in str(error)
    assert "check LETTERMINT_API_TOKEN" in str(error)
    assert "lm_wrong" not in str(error)


@pytest.mark.parametrize("code", [250, 334, 500])
def test_only_235_is_a_successful_login(code: int) -> None:
    with FaultServer([On("auth", do=reply(code))]) as server:
        assert isinstance(failure(server), AuthenticationFailed)
        assert len(server.logins) == 1


@pytest.mark.parametrize(
    ("do", "code"),
    [
        (reply(421, "bye", close=True), 421),
        (reply(400, "later"), 400),
        (reply(499, "later"), 499),
        (drop(), 0),
        (hang(), 0),
    ],
    ids=str,
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
def test_a_login_refused_early_does_not_send_the_token(auth: str, code: int) -> None:
    script = [On("auth_cont", do=reply(code, "5.7.8 no"))]
    with FaultServer(script, auth=[auth]) as server:
        error = failure(server)
        assert base64.b64encode(TOKEN.encode()) not in server.received[1]
    assert isinstance(error, AuthenticationFailed if code >= 500 else ConnectFailed)


@pytest.mark.parametrize(
    "challenge", cases(signs="PDE4*OTY=", nothing="", umlaut="caf\xe9")
)
def test_a_challenge_that_is_not_base64_is_not_answered(challenge: str) -> None:
    script = [On("auth_cont", do=reply(334, challenge))]
    with FaultServer(script, auth=["CRAM-MD5"]) as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert "challenge is not base64" in str(error)
    assert error.phase is Phase.AUTH


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_an_echoed_login_is_redacted(mechanism: str) -> None:
    token = TOKEN.encode()
    digest = hmac.new(token, CHALLENGE, "md5").hexdigest()
    response = {
        "PLAIN": b"\0lettermint\0" + token,
        "LOGIN": token,
        "CRAM-MD5": b"lettermint " + digest.encode(),
    }[mechanism]
    echo = reply(535, f"you said {TOKEN} {base64.b64encode(response).decode()}")
    with FaultServer([On("auth", do=echo)], auth=[mechanism]) as server:
        error = failure(server)
    assert "you said *** ***" in str(error)
    assert error.smtp_error == b"you said *** ***"


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (On("banner", do=reply(554, f"go away {TOKEN}")), "go away ***"),
        (On("auth", do=raw(TOKEN.encode() + b"!\r\n")), "not an SMTP reply: '***!'"),
    ],
    ids=["greeting", "invalid reply"],
)
def test_the_token_is_redacted_in_every_reply(fault: On, shown: str) -> None:
    with FaultServer([fault]) as server:
        assert shown in str(failure(server))
