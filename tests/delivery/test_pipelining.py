"""Pipelining behind the end of a message is our optimisation: no message fails for it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from django_lettermint.exceptions import ConnectionLost, RecipientsRefused
from django_lettermint.results import Outcome
from tests.faultserver import Answer, FaultServer, On, drop, reply
from tests.sending import (
    SHORT,
    backend,
    cases,
    mail,
    mails,
    result,
    spoken,
    status,
)

if TYPE_CHECKING:
    from tests.faults import Phase

COMMANDS: tuple[Phase, ...] = ("mail", "rcpt", "data")


def behind_end(code: int, text: str = "pipelined after end of DATA") -> list[On]:
    """Return rules that refuse what comes before the reply to a message."""
    refusal = reply(code, text)
    return [On(phase, behind_end=True, do=refusal) for phase in COMMANDS]


class Seen:
    """Counts how often a rule acts, and changes nothing."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, answer: Answer) -> Answer:
        self.times += 1
        return answer


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize(
    ("code", "text"),
    [(503, "5.5.1 no"), (451, "4.7.0 wait"), (550, "5.7.0 no"), (554, "5.5.0 no")],
)
def test_a_relay_that_refuses_pipelining_gets_the_whole_list(
    code: int, text: str, width: int
) -> None:
    with FaultServer(behind_end(code, text)) as server:
        assert backend(server, batch_connections=width).send_messages(mails(50)) == 50
        assert set(server.delivered.values()) == {1}
        assert len(server.delivered) == 50
        assert server.connections <= width
        # Found out by a message or two of each connection, and then remembered.
        assert spoken(server).count("MAIL") <= 50 + 2 * width
        assert server.violations == []


@pytest.mark.parametrize(
    "script",
    cases(
        all_is_refused=behind_end(503),
        a_recipient_is=[
            On("rcpt", match="2b@", behind_end=True, do=reply(503, "5.5.1 no"))
        ],
        the_connection_is_lost=[On("mail", behind_end=True, do=drop(), times=1)],
    ),
)
def test_after_any_trouble_with_pipelining_the_next_list_goes_without(
    script: list[On],
) -> None:
    seen = Seen()
    with FaultServer(script) as server:
        sender = backend(server)
        messages = [mail("1@x.test"), mail("2a@x.test", "2b@x.test")]
        assert sender.send_messages(messages) == 2
        assert status(messages[1]).status == {"queued"}
        assert server.delivered == Counter(["1@x.test", "2a@x.test", "2b@x.test"])
        server.script.insert(0, On("mail", behind_end=True, do=seen))
        assert sender.send_messages(mails(3)) == 3
    assert seen.times == 0


def test_a_wrong_address_does_not_end_the_pipelining() -> None:
    seen = Seen()
    script = [
        On("rcpt", match="<3@", do=reply(550, "5.1.1 who?")),
        On("rcpt", match="<9@", behind_end=True, do=seen),
    ]
    with FaultServer(script) as server:
        messages = mails(10)
        with pytest.raises(RecipientsRefused):
            backend(server).send_messages(messages)
        refused = [
            each for each in messages if result(each).outcome is not Outcome.SENT
        ]
        assert [each.to for each in refused] == [["3@example.org"]]
        assert seen.times == 1
        assert server.connections == 1


@pytest.mark.parametrize(("recipients", "times"), [(3, 1), (4, 0)])
def test_a_message_with_more_than_three_recipients_is_never_pipelined(
    recipients: int, times: int
) -> None:
    # The relay may keep its reply to the message before while it looks them up.
    seen = Seen()
    script = [On("mail", message=2, behind_end=True, do=seen)]
    with FaultServer(script) as server:
        second = mail(*(f"{number}@x.test" for number in range(recipients)))
        assert backend(server).send_messages([mail(), second, mail()]) == 3
    assert seen.times == times


def test_a_relay_that_offers_pipelining_and_fails_at_it_is_met_by_the_option() -> None:
    with FaultServer(one_command_per_segment=True) as server:
        with pytest.raises(ConnectionLost, match="set pipelining=False"):
            backend(server, timeout=SHORT, retries=0).send_messages([mail()])
        sender = backend(server, timeout=SHORT, pipelining=False)
        assert sender.send_messages([mail()]) == 1
