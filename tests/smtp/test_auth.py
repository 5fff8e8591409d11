"""The login: one attempt, and no trace of the token."""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    LettermintError,
)
from django_lettermint.results import Phase
from tests.faultserver import CHALLENGE, TOKEN, FaultServer, On, drop, hang, raw, reply
from tests.sending import SHORT, session
from tests.smtp.helpers import failure

if TYPE_CHECKING:
    from tests.faults import Action

MECHANISMS = ["PLAIN", "LOGIN", "CRAM-MD5"]
HANG = hang()


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
def test_offers_of_auth_are_merged_and_features_read_in_any_letter_case(
    offer: str, mechanism: str
) -> None:
    script = [On("ehlo", do=reply(250, f"relay\n{offer}\n\nSize 1000"))]
    with FaultServer(script, auth=MECHANISMS) as server, session(server) as held:
        assert server.logins == [(mechanism, "lettermint", True)]
        assert held.features["SIZE"] == "1000"


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


@pytest.mark.parametrize(
    ("mechanism", "step", "do", "kind", "code"),
    [
        # Only 235 is success.
        ("PLAIN", "auth", reply(250), AuthenticationFailed, 250),
        ("PLAIN", "auth", reply(334), AuthenticationFailed, 334),
        ("PLAIN", "auth", reply(500), AuthenticationFailed, 500),
        ("PLAIN", "auth", reply(421, close=True), ConnectFailed, 421),
        ("PLAIN", "auth", reply(400), ConnectFailed, 400),
        ("PLAIN", "auth", reply(499), ConnectFailed, 499),
        ("PLAIN", "auth", drop(), ConnectFailed, 0),
        ("PLAIN", "auth", HANG, ConnectFailed, 0),
        # The token is not sent after these.
        ("LOGIN", "auth_cont", reply(535), AuthenticationFailed, 535),
        ("LOGIN", "auth_cont", reply(454), ConnectFailed, 454),
        ("CRAM-MD5", "auth_cont", reply(535), AuthenticationFailed, 535),
        # These challenges are not base64.
        ("CRAM-MD5", "auth_cont", reply(334, "PDE4*OTY="), ConnectFailed, 0),
        ("CRAM-MD5", "auth_cont", reply(334, ""), ConnectFailed, 0),
        ("CRAM-MD5", "auth_cont", reply(334, "caf\xe9"), ConnectFailed, 0),
    ],
    ids=[
        *("250", "334", "500", "421", "400", "499", "lost", "late", "LOGIN 535"),
        *("LOGIN 454", "CRAM-MD5 535", "no base64", "nothing", "no ASCII"),
    ],
)
def test_a_login_that_fails_is_a_failed_connection_if_it_fails_for_now(
    mechanism: str, step: Any, do: Action, kind: type[LettermintError], code: int
) -> None:
    with FaultServer([On(step, do=do)], auth=[mechanism]) as server:
        error = failure(server, timeout=SHORT if do is HANG else 10)
        assert server.connections == 1
        secret = base64.b64encode(TOKEN.encode())
        assert step == "auth" or secret not in server.received[1]
    assert (error.smtp_code, error.transient) == (code, kind is ConnectFailed)
    assert isinstance(error, kind)
    if isinstance(error, ConnectFailed):
        assert (error.step, error.phase) == ("AUTH", Phase.AUTH)
    assert ("challenge is not base64" in str(error)) is (step != "auth" and not code)


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
