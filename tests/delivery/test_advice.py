"""What a refusal advises: by what the reply says first, then by the step it came at."""

from __future__ import annotations

import pytest

from django_lettermint.delivery.advice import advise
from django_lettermint.results import Phase
from django_lettermint.smtp import Reply

#: A few words of each piece of advice.
EHLO = "`local_hostname`"
LOGIN = "check the token"
BLOCKED = "blocks this machine"
QUOTA = "a quota is used up"
SIZE = "the message is too large"
RATE = "limits how much is sent"
ADDRESS = "correct the address"
DOMAIN = "is the domain verified"
LATER = "send it again later"
SAYS_WHY = "the reply says why"
MESSAGE = "correct the message"

SAID = [
    (
        504,
        "5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname",
        EHLO,
    ),
    (550, "5.7.1 <web-1>: Helo command rejected: Host not found", EHLO),
    (450, "EHLO name does not resolve", EHLO),
    (530, "5.7.0 Authentication required", LOGIN),
    (535, "5.7.8 login expired", LOGIN),
    (554, "5.7.8 bad credentials", LOGIN),
    (550, "Authentication is required to send", LOGIN),
    (554, "5.7.1 Client host [192.0.2.1] blocked using zen.spamhaus.org", BLOCKED),
    (550, "5.7.1 listed on a blocklist", BLOCKED),
    (450, "4.7.1 your network has a bad reputation", BLOCKED),
    (554, "your IP is on our deny list", BLOCKED),
    (552, "5.2.2 mailbox full", QUOTA),
    (452, "4.2.2 over quota", QUOTA),
    (550, "monthly quota exceeded", QUOTA),
    (452, "4.3.1 insufficient system storage", QUOTA),
    (552, "5.3.4 message size exceeds fixed maximum message size", SIZE),
    (552, "", SIZE),
    (554, "5.2.3 too big for the recipient", SIZE),
    (550, "this message is too large", SIZE),
    (450, "4.7.0 sending rate exceeded", RATE),
    (451, "4.7.1 you are sending too fast", RATE),
    (550, "5.7.1 daily sending limit reached", RATE),
    (452, "4.5.3 too many messages", RATE),
]


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.COMMIT])
@pytest.mark.parametrize(("code", "text", "advice"), SAID)
def test_what_the_reply_says_counts_at_every_step(
    code: int, text: str, advice: str, phase: Phase
) -> None:
    assert advice in advise(Reply(code, (text,)), phase)


@pytest.mark.parametrize("code", [451, 499])
@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.COMMIT])
def test_a_temporary_refusal_without_a_reason_advises_to_wait(
    phase: Phase, code: int
) -> None:
    assert advise(Reply(code, ("4.3.0 sorry",)), phase) == LATER


@pytest.mark.parametrize(
    ("code", "text", "advice"),
    [
        (550, "5.1.1 no such user", ADDRESS),
        (550, "", ADDRESS),
        (550, "no", ADDRESS),
        (553, "5.1.3 bad syntax", ADDRESS),
        (501, "", ADDRESS),
        (551, "not local", ADDRESS),
        (554, "5.2.1 disabled", ADDRESS),
        (554, "no such recipient", ADDRESS),
        (554, "5.7.1 rejected by policy", SAYS_WHY),
        (550, "5.7.1 rejected by policy", SAYS_WHY),
        (554, "transaction failed", SAYS_WHY),
    ],
)
def test_only_a_reply_about_the_address_advises_to_correct_it(
    code: int, text: str, advice: str
) -> None:
    assert advice in advise(Reply(code, (text,)), Phase.RCPT)


@pytest.mark.parametrize("code", [500, 550])
def test_a_refused_sender_advises_to_verify_the_domain(code: int) -> None:
    assert DOMAIN in advise(Reply(code, ("5.7.1 no",)), Phase.MAIL)


@pytest.mark.parametrize("phase", [Phase.DATA, Phase.CONTENT, Phase.COMMIT])
def test_a_refused_message_may_be_the_callers_own_key(phase: Phase) -> None:
    reply = Reply(554, ("5.6.0 no",))
    assert MESSAGE in advise(reply, phase)
    assert "key is your own" in advise(reply, phase, has_caller_key=True)


@pytest.mark.parametrize(
    ("code", "phase"), [(450, Phase.COMMIT), (550, Phase.RCPT), (550, Phase.MAIL)]
)
def test_the_callers_own_key_does_not_explain_other_refusals(
    code: int, phase: Phase
) -> None:
    assert "your own" not in advise(Reply(code), phase, has_caller_key=True)
