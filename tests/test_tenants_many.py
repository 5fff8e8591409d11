"""A thousand tenants over twenty threads, some unknown, some wrong, some rotated meanwhile."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import AuthenticationFailed, LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.testing import Relay
from tests.sending import listening

TENANTS = 1_000
THREADS = 20
OF_SETTINGS = "lm_of_the_settings"


def kind(number: int) -> str:
    return {7: "unknown", 8: "wrong", 9: "rotated"}.get(number % 10, "usual")


def token(number: int, moment: str) -> str:
    """Return the token of a tenant, before or after its rotation."""
    if kind(number) == "rotated":
        return f"lm_{number}_{moment}"
    return f"lm_{kind(number)}_{number}"


@pytest.mark.slow
def test_each_mail_arrives_under_its_own_token_or_fails_by_itself() -> None:
    known = {
        f"{number}": token(number, "before")
        for number in range(TENANTS)
        if kind(number) != "unknown"
    }
    moments = ("before", "after")
    tokens = {token(number, at) for number in range(TENANTS) for at in moments}
    accepted = [each for each in tokens if "wrong" not in each]
    with (
        Relay(
            OF_SETTINGS,
            other_tokens=accepted,
            mechanisms=("PLAIN",),
            ports={"plaintext": 0},
        ) as relay,
        listening() as heard,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        options = relay.options(
            "plaintext", tenants=lambda name: {"api_token": known[name]}
        )

        def send(number: int, moment: str) -> None:
            """Send a tenant's mail, as a request of it does, with one of another tenant."""
            message, other = (
                LettermintMessage(subject, "", "ann@example.org", ["bob@example.org"])
                for subject in (f"{number} {moment}", f"0 beside {number} {moment}")
            )
            other.tenant = "0"
            with (
                suppress(AuthenticationFailed, LettermintInvalidMessage),
                extras(tenant=f"{number}"),
            ):
                EmailBackend(**options).send_messages(
                    [message] if number % 5 else [message, other]
                )

        def work(number: int) -> None:
            send(number, "before")
            if kind(number) == "rotated":
                known[f"{number}"] = token(number, "after")
            send(number, "after")

        list(threads.map(work, range(TENANTS)))
        found = {str(each.mime["Subject"]): each.token for each in relay.messages}

    expected = {
        f"{number} {at}": token(number, at)
        for number in range(TENANTS)
        for at in moments
        if kind(number) in ("usual", "rotated")
    }
    beside = {
        f"0 beside {number} {at}": token(0, at)
        for number in range(0, TENANTS, 5)
        for at in moments
    }
    assert found == expected | beside
    assert len(relay.messages) == len(found)
    failed: Counter[Any] = Counter(
        (kind(int(str(message.subject).split()[0])), type(error))
        for message, _, error in heard.failed
    )
    assert failed == {
        ("unknown", LettermintInvalidMessage): TENANTS // 10 * 2,
        ("wrong", AuthenticationFailed): TENANTS // 10 * 2,
    }
    assert len(heard.sent) == len(found)
    stats = pool.get_stats()
    assert len(stats) < 64 + 2 * THREADS
    assert sum(each["size"] for each in stats) <= 64
