"""Name look-ups end in time, and EHLO gives a full name or an address literal."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from django_lettermint.smtp.dns import OwnName, resolve
from tests.smtp.helpers import soon


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """Give an event for look-ups to wait for; it is set at the end."""
    release = threading.Event()
    yield release
    release.set()
    for thread in threading.enumerate():
        if thread.name == "lettermint-resolver":
            thread.join(5)
            assert not thread.is_alive()


# -- host names ------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_ip_address_needs_no_look_up(host: str) -> None:
    # The time is over: a look-up would fail.
    (found, *_) = resolve(host, 465, soon(-1))
    assert found[4][:2] == (host, 465)
    assert found[1] == socket.SOCK_STREAM


def test_a_name_is_looked_up_and_an_unknown_one_is_an_error() -> None:
    found = resolve("localhost", 25, soon())
    assert {info[4][0] for info in found} <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"(?i)name"):
        resolve("nope.invalid", 25, soon(20))


def test_a_look_up_that_hangs_ends_in_time(
    hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: object, flags: int = 0, **__: object) -> list[object]:
        if flags:
            raise socket.gaierror("not an IP address")
        hanging.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="look-up timed out"):
        resolve("slow.example.org", 25, soon(0.1))
    assert time.monotonic() - began < 2
    threads = {each.name: each for each in threading.enumerate()}
    # So that the process can end meanwhile.
    assert threads["lettermint-resolver"].daemon


def test_a_look_up_works_when_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert resolve("localhost", 25, soon())


# -- the name for EHLO -----------------------------------------------------------------


FULL = ["mail.example.org", "MX-1.example.co.uk", "a.b", "7.example.org"]
OTHERS = [
    *("", "localhost", "web-1", "under_score.example.org", "m\xfcller.example.org"),
    *("box.", ".example.org", "box..example.org", "192.0.2.1", "fe80::1"),
    *("-box.example.org", "box-.example.org", "box.example.org\n"),
    "box.example.org\r\nMAIL FROM:<x@example.org>",
]


@pytest.mark.parametrize("name", [*FULL, *OTHERS])
def test_a_full_name_is_looked_up_once_and_else_an_address_literal_is_used(
    name: str,
) -> None:
    names = [name]
    own = OwnName(names.pop)
    for _ in range(2):
        said = own.ehlo_name("192.0.2.7", soon())
        assert said == (name if name in FULL else "[192.0.2.7]")


@pytest.mark.parametrize(
    ("address", "literal"),
    [
        ("2001:db8::7", "[IPv6:2001:db8::7]"),
        ("fe80::7%eth0", "[IPv6:fe80::7]"),
    ],
)
def test_an_address_literal_names_the_kind_of_address(
    address: str, literal: str
) -> None:
    assert OwnName(lambda: "box").ehlo_name(address, soon()) == literal


def test_a_failing_look_up_gives_an_address_literal() -> None:
    def look_up() -> str:
        raise OSError("no name server")

    assert OwnName(look_up).ehlo_name("192.0.2.7", soon()) == "[192.0.2.7]"


def test_a_slow_name_is_cut_short_and_looked_up_again(hanging: threading.Event) -> None:
    def look_up() -> str:
        hanging.wait()
        return "mail.example.org"

    own = OwnName(look_up)
    assert own.ehlo_name("192.0.2.7", soon(0.05)) == "[192.0.2.7]"
    hanging.set()
    assert own.ehlo_name("192.0.2.7", soon()) == "mail.example.org"
