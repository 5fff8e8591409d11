"""Refusals that speak of a session, a connection or pipelining, not of a message."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from django_lettermint import pool
from django_lettermint.exceptions import (
    ConnectFailed,
    ConnectionLost,
    RecipientsRefused,
    SenderRefused,
)
from django_lettermint.results import Outcome
from tests.faultserver import FEATURES, Answer, FaultServer, On, drop, gate, reply
from tests.sending import (
    SHORT,
    backend,
    cases,
    mail,
    mails,
    result,
    sending,
    spoken,
    status,
)

if TYPE_CHECKING:
    from tests.faults import Action, Phase

TOO_MANY = reply(421, "4.7.0 too many connections", close=True)


def after_ten_messages(phase: Phase, do: Action) -> list[On]:
    """Return rules that act on each connection from its eleventh MAIL on."""
    return [
        On(phase, connection=connection, message=message, do=do)
        for connection in range(1, 20)
        for message in range(11, 30)
    ]


LIMITS: list[tuple[Phase, int, str]] = [
    ("mail", 451, "Mails per session limit exceeded"),
    ("mail", 530, "5.7.0 Authentication required"),
    ("data", 452, "4.4.5 Maximum number of messages per session exceeded"),
    ("rcpt", 452, "4.5.3 Too many messages in this session"),
]


@pytest.mark.parametrize(("phase", "code", "text"), LIMITS)
def test_a_limit_of_messages_for_a_session_fails_no_message(
    phase: Phase, code: int, text: str
) -> None:
    with FaultServer(after_ten_messages(phase, reply(code, text))) as server:
        assert backend(server).send_messages(mails(50)) == 50
        for number in range(51, 66):
            single = mail(f"{number}@example.org")
            assert backend(server).send_messages([single]) == 1
        assert set(server.delivered.values()) == {1}
        assert len(server.delivered) == 65
        assert server.connections <= 8


@pytest.mark.parametrize(
    ("before", "width", "logins"), [(0, 1, 1), (3, 1, 2), (3, None, 10)]
)
def test_a_relay_that_refuses_every_message_sees_few_logins(
    before: int, width: int | None, logins: int
) -> None:
    with FaultServer() as server:
        sender = backend(server, batch_connections=width)
        assert sender.send_messages(mails(before)) == before
        server.script.append(On("mail", do=reply(452, "4.5.3 too many messages")))
        messages = mails(50)
        with pytest.raises(SenderRefused):
            sender.send_messages(messages)
        assert {result(each).outcome for each in messages} == {Outcome.NOT_SENT}
        assert len(server.logins) <= logins


@pytest.mark.parametrize("chunking", [False, True])
def test_a_message_refused_for_its_session_goes_out_on_a_new_connection(
    *, chunking: bool
) -> None:
    release = threading.Event()
    features = (*FEATURES, "CHUNKING")
    with FaultServer(
        [On("dot", message=1, do=gate(release))], features=features, idempotency=True
    ) as server:
        sender = backend(server, chunking=chunking)
        with sending(sender, [mail()]):
            assert server.wait_for(lambda: server.messages == 1)
            assert sender.send_messages([mail()]) == 1
            release.set()
        # Both connections are idle, and at their limit.
        refusal = reply(452, "4.5.3 Too many messages sent")
        server.script = [On("mail", connection=each, do=refusal) for each in (1, 2)]

        assert sender.send_messages(mails(2)) == 2


def test_a_limit_of_connections_beside_that_of_messages_fails_no_message() -> None:
    release, refused = threading.Event(), threading.Event()

    def refuse(answer: Answer) -> Answer:
        refused.set()
        return TOO_MANY(answer)

    with FaultServer([On("dot", message=1, do=gate(release))]) as server:
        sender = backend(server)
        with sending(sender, [mail()]):
            assert server.wait_for(lambda: server.messages == 1)
            assert sender.send_messages([mail()]) == 1
            limit = reply(452, "4.5.3 Too many messages sent")
            server.script += [On("mail", connection=each, do=limit) for each in (1, 2)]
            server.script.append(On("banner", connection=3, do=refuse))
            with sending(sender, [mail()]):
                assert refused.wait(30)
                release.set()
        assert server.delivered == {"bob@example.org": 3}
        assert server.connections == 4


# -- A relay that takes no further connection ------------------------------------------


@pytest.mark.parametrize(
    ("phase", "refusal", "lost"),
    [
        pytest.param("banner", TOO_MANY, False, id="421"),
        pytest.param("banner", drop(), True, id="closed, after its own was lost"),
        pytest.param("mail", TOO_MANY, False, id="421 after the login"),
        pytest.param("mail", drop(), True, id="closed after the login"),
    ],
)
def test_a_message_waits_for_an_open_connection_if_the_relay_takes_no_other(
    phase: Phase, refusal: Action, *, lost: bool
) -> None:
    release, refused = threading.Event(), threading.Event()

    def refuse(answer: Answer) -> Answer:
        refused.set()
        return refusal(answer)

    with FaultServer([On("dot", message=1, do=gate(release))]) as server:
        sender = backend(server, retries=0)
        with sending(sender, [mail()]):
            assert server.wait_for(lambda: server.messages == 1)
            if lost:
                assert sender.send_messages([mail()]) == 1
                server.script.append(On("mail", connection=2, do=drop()))
            server.script.append(On(phase, connection=2 + lost, do=refuse))
            with sending(sender, [mail()]):
                assert refused.wait(30)
                release.set()
        assert server.delivered == {"bob@example.org": 2 + lost}
        assert server.connections == 2 + lost


def test_a_message_does_not_wait_for_an_open_connection_if_the_port_is_closed() -> None:
    release = threading.Event()
    with FaultServer([On("dot", message=1, do=gate(release))]) as server:
        sender = backend(server, retries=0)
        with sending(sender, [mail()]):
            assert server.wait_for(lambda: server.messages == 1)
            server.close_door()
            with pytest.raises(ConnectFailed, match="TCP"):
                sender.send_messages([mail()])
            release.set()


def test_a_message_that_breaks_every_connection_makes_the_pool_no_smaller() -> None:
    with FaultServer([On("rcpt", match="bad@", do=drop())]) as server:
        sender = backend(server, retries=0, pool={"timeout": 0.1})

        def lease_two() -> None:
            with (
                pool.lease(sender.config, seconds=30),
                pool.lease(sender.config, seconds=30),
            ):
                pass

        lease_two()
        with pytest.raises(ConnectionLost):
            sender.send_messages([mail("bad@example.org")])
        assert server.connections == 4
        lease_two()


# -- Pipelining behind the end of a message --------------------------------------------


def behind_end(code: int, text: str = "pipelined after end of DATA") -> list[On]:
    """Return rules that refuse what comes before the reply to a message."""
    commands: tuple[Phase, ...] = ("mail", "rcpt", "data")
    return [On(each, behind_end=True, do=reply(code, text)) for each in commands]


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
    [(503, "5.5.1 no"), (451, "4.7.0 wait"), (550, "5.7.0 no")],
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


def test_a_relay_that_offers_pipelining_and_fails_at_it_is_met_by_the_option() -> None:
    with FaultServer(one_command_per_segment=True) as server:
        with pytest.raises(ConnectionLost, match="set pipelining=False"):
            backend(server, timeout=SHORT, retries=0).send_messages([mail()])
        sender = backend(server, timeout=SHORT, pipelining=False)
        assert sender.send_messages([mail()]) == 1
