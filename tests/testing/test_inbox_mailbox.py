"""How much the inbox keeps, and whom it tells of changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_lettermint.testing.inbox.mailbox import Mailbox
from tests.testing.records import received

if TYPE_CHECKING:
    from collections.abc import Iterator


def kept(mailbox: Mailbox) -> Iterator[str]:
    return (mail.id for mail in mailbox)


def test_a_mailbox_keeps_the_newest_mails() -> None:
    mailbox = Mailbox(keep=3, max_octets=10_000)
    records = [received() for _ in range(5)]

    for record in records:
        mailbox.add(record)

    assert list(kept(mailbox)) == [record.id for record in records[:1:-1]]
    assert mailbox.get(records[1].id) is None


def test_a_mailbox_drops_old_mails_for_a_large_one() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)
    small = [received(b"x" * 300) for _ in range(3)]
    for record in small:
        mailbox.add(record)

    mailbox.add(large := received(b"x" * 600))

    assert list(kept(mailbox)) == [large.id, small[2].id]


def test_a_mail_that_is_too_large_by_itself_is_the_only_one() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)
    mailbox.add(received())

    mailbox.add(large := received(b"x" * 5000))

    assert list(kept(mailbox)) == [large.id]


def test_the_same_mail_is_kept_once() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)
    record = received()

    mailbox.add(record)
    version = mailbox.version
    mailbox.add(record)

    assert list(kept(mailbox)) == [record.id]
    assert mailbox.version == version


def test_a_cleared_mailbox_has_room_again() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)
    mailbox.add(received(b"x" * 900))

    mailbox.clear()
    for _ in range(3):
        mailbox.add(received(b"x" * 300))

    assert len(list(mailbox)) == 3


def test_each_change_has_a_version_of_its_own() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)
    versions = [mailbox.version]
    mailbox.add(received())
    versions.append(mailbox.version)
    (mail,) = mailbox
    mailbox.opened(mail)
    versions.append(mailbox.version)
    mailbox.clear()
    versions.append(mailbox.version)

    assert len(set(versions)) == 4
    assert Mailbox(keep=10, max_octets=1000).version not in versions


def test_who_waits_in_vain_gets_the_same_version() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)

    assert mailbox.wait(mailbox.version, timeout=0) == mailbox.version


def test_nobody_waits_at_a_closed_mailbox() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)
    mailbox.close()

    assert mailbox.wait(mailbox.version, timeout=20) == ""

    mailbox.open()
    assert mailbox.wait("", timeout=20) == mailbox.version
