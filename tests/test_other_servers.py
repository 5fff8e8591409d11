"""The backend against aiosmtpd as it comes, and against Twisted's server.

Twisted knows neither pipelining nor 8BITMIME nor SIZE, and says little.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import (
    AuthenticationFailed,
    RecipientsRefused,
    SenderRefused,
)
from tests.other_servers import Server, aiosmtpd, twisted
from tests.sending import mail, mails

Start = Callable[[str], AbstractContextManager[Server]]

both_servers = pytest.mark.parametrize("start", [aiosmtpd, twisted])
both_securities = pytest.mark.parametrize("security", ["tls", "starttls"])


@both_servers
@both_securities
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_mail_arrives_as_it_was_written(
    start: Start, security: str, mechanism: str
) -> None:
    message = mail("bob@example.org", cc=["carol@example.org"], subject="Grüße")
    message.body = "Bücher\n.\n..\n.dots\nend"
    with start(security) as server:
        options = server.options(auth_mechanism=mechanism)
        assert EmailBackend(**options).send_messages([message]) == 1
    assert server.delivered == {"bob@example.org": 1, "carol@example.org": 1}
    [content] = {content for _, content in server.taken}
    assert "To: bob@example.org\nCc: carol@example.org\n" in content


@both_servers
@both_securities
def test_a_batch_arrives_once_each(start: Start, security: str) -> None:
    batch = mails(100)
    with start(security) as server:
        assert EmailBackend(**server.options()).send_messages(batch) == 100
    assert server.delivered == {f"{number}@example.org": 1 for number in range(1, 101)}


@both_servers
@both_securities
def test_refusals_harm_no_other_mail(start: Start, security: str) -> None:
    partly = mail("nobody@example.org", "bob@example.org")
    banned, nobody, last = mail(), mail("nobody@example.org"), mail("last@example.org")
    banned.from_email = "banned@example.org"
    batch = [partly, banned, nobody, last]
    with start(security) as server, pytest.raises(SenderRefused, match="550") as caught:
        EmailBackend(**server.options()).send_messages(batch)
    assert [each.outcome.name for each in caught.value.results] == [
        *("SENT", "NOT_SENT", "NOT_SENT", "SENT")
    ]
    assert server.delivered == {"bob@example.org": 1, "last@example.org": 1}


@both_servers
def test_a_mail_refused_by_all_raises(start: Start) -> None:
    with start("tls") as server, pytest.raises(RecipientsRefused, match="550"):
        EmailBackend(**server.options()).send_messages([mail("nobody@example.org")])
    assert server.delivered == {}


@both_servers
def test_a_wrong_token_is_refused(start: Start) -> None:
    with start("tls") as server, pytest.raises(AuthenticationFailed, match="535"):
        EmailBackend(**server.options(api_token="lm_wrong")).send_messages([mail()])
    assert server.delivered == {}
