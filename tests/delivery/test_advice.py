"""What a refusal advises: by what the reply says first, then by the step it came at."""

from __future__ import annotations

import pytest

from django_lettermint.delivery.advice import advise
from django_lettermint.results import Phase
from django_lettermint.smtp import Reply

#: A few words of each piece of advice.
EHLO = "`local_hostname`"
LOGIN = "check the token"
CONTENT = "correct its content"
BLOCKED = "blocks this machine"
QUOTA = "a quota is used up"
SIZE = "the message is too large"
RATE = "limits how much is sent"
ADDRESS = "correct the address"
LATER = "send it again later"
SAYS_WHY = "the reply says why"
MESSAGE = "correct the message"
DOMAIN = "is the domain verified"

AT_ANY_STEP = [
    (504, "5.5.2 <web>: Helo command rejected: need fully-qualified hostname", EHLO),
    (450, "EHLO name does not resolve", EHLO),
    (530, "5.7.0 sorry", LOGIN),
    (535, "5.7.1 login expired", LOGIN),
    (554, "5.7.8 bad credentials", LOGIN),
    (550, "Authentication is required to send", LOGIN),
    (554, "5.7.1 Client host [192.0.2.1] blocked using zen.spamhaus.org", BLOCKED),
    (550, "5.7.1 listed on a blocklist", BLOCKED),
    (550, "5.7.1 part of their network is on our block list (S3140)", BLOCKED),
    (552, "5.7.0 This message was blocked because its content is unsafe", CONTENT),
    (450, "4.7.1 your network has a bad reputation", BLOCKED),
    (552, "5.2.2 mailbox full", QUOTA),
    (550, "monthly quota exceeded", QUOTA),
    (452, "4.3.1 insufficient system storage", QUOTA),
    (552, "5.3.4 message size exceeds fixed maximum message size", SIZE),
    (552, "", SIZE),
    (554, "5.2.3 no", SIZE),
    (550, "this message is too large", SIZE),
    (450, "4.7.0 sending rate exceeded", RATE),
    (451, "4.7.1 you are sending too fast", RATE),
    (452, "4.5.3 too many messages", RATE),
    (451, "4.3.0 sorry", LATER),
    (499, "4.3.0 sorry", LATER),
]
TABLE = [
    *(
        (phase, *row)
        for phase in (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.COMMIT)
        for row in AT_ANY_STEP
    ),
    (Phase.MAIL, 500, "5.7.1 no", DOMAIN),
    (Phase.RCPT, 550, "5.1.1 no such user", ADDRESS),
    (Phase.RCPT, 550, "", ADDRESS),
    (Phase.RCPT, 550, "no", ADDRESS),
    (Phase.RCPT, 501, "", ADDRESS),
    (Phase.RCPT, 551, "not local", ADDRESS),
    (Phase.RCPT, 553, "5.1.3 bad syntax", ADDRESS),
    (Phase.RCPT, 554, "5.2.1 disabled", ADDRESS),
    (Phase.RCPT, 554, "no such recipient", ADDRESS),
    (Phase.RCPT, 550, "5.7.1 rejected by policy", SAYS_WHY),
    (Phase.RCPT, 554, "transaction failed", SAYS_WHY),
    (Phase.DATA, 500, "5.6.0 no", MESSAGE),
    (Phase.CONTENT, 554, "5.6.0 no", MESSAGE),
    (Phase.COMMIT, 554, "5.6.0 no", MESSAGE),
]


@pytest.mark.parametrize(("phase", "code", "text", "advice"), TABLE)
def test_the_reply_is_explained_before_the_step(
    phase: Phase, code: int, text: str, advice: str
) -> None:
    reply = Reply(code, (text,))
    assert advice in advise(reply, phase)
    # The caller's own key explains a refused message only.
    with_key = "key is your own" if advice is MESSAGE else advice
    assert with_key in advise(reply, phase, has_caller_key=True)
