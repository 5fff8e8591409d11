"""A reader of the inbox in plain HTTP, and mail to put into it."""

from __future__ import annotations

import html
import http.client
import re
import smtplib
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from typing import TYPE_CHECKING

from tests.testing.relay_client import client

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from django_lettermint.testing import Relay
    from django_lettermint.testing.inbox import Inbox

SHOP = "shop@example.com"
ADA = "ada@example.com"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def source(self) -> str:
        return self.body.decode()

    @property
    def text(self) -> str:
        """What a page says, without its markup."""
        without = re.sub(r"<(title|script)\b.*?</\1>|<[^>]*>", " ", self.source)
        return " ".join(html.unescape(without).split())


@contextmanager
def connected(inbox: Inbox) -> Iterator[http.client.HTTPConnection]:
    port = urllib.parse.urlsplit(inbox.url).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        yield connection
    finally:
        connection.close()


def request(
    inbox: Inbox,
    method: str,
    path: str,
    headers: Mapping[str, str | None] | None = None,
    *,
    body: str = "",
) -> Answer:
    """Ask as a browser on the inbox's own pages does; None leaves a header out."""
    own: dict[str, str | None] = {"Host": urllib.parse.urlsplit(inbox.url).netloc}
    if method == "POST":
        own["Origin"] = inbox.url.rstrip("/")
    own["Content-Length"] = str(len(body))
    sent = {**own, **(headers or {})}
    with connected(inbox) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body.encode())
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def get(inbox: Inbox, path: str = "/", **headers: str | None) -> Answer:
    return request(inbox, "GET", path, headers)


def post(inbox: Inbox, path: str, **fields: str) -> Answer:
    return request(inbox, "POST", path, body=urllib.parse.urlencode(fields))


def paths(inbox: Inbox, query: str = "") -> list[str]:
    """Return the paths of the mails in the list, from top to bottom."""
    page = get(inbox, f"/?q={urllib.parse.quote(query)}")
    return re.findall(r'href="(/mail/[^"]+)"', page.source)


def subjects(inbox: Inbox, query: str = "") -> list[str]:
    page = get(inbox, f"/?q={urllib.parse.quote(query)}")
    found = re.findall(r'href="/mail/[^"]+">.*?<bdi>(.*?)</bdi></a>', page.source)
    return [html.unescape(each) for each in found]


def message(
    subject: str = "Hi",
    text: str = "Hello Ada.\n",
    headers: Mapping[str, str] | None = None,
) -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = f"Mint Shop <{SHOP}>"
    mail["To"] = f"Ada Lovelace <{ADA}>"
    mail["Subject"] = subject
    for name, value in (headers or {}).items():
        mail[name] = value
    mail.set_content(text)
    return mail


def deliver(
    relay: Relay,
    *mails: EmailMessage | bytes,
    to: tuple[str, ...] = (ADA,),
    sender: str = SHOP,
    security: str = "tls",
) -> None:
    """Send mails by a client that shares no code with the package."""
    with client(relay, security) as connection:
        for mail in mails:
            octets = mail if isinstance(mail, bytes) else mail.as_bytes(policy=SMTP)
            connection.sendmail(sender, to, octets)


def refused(
    relay: Relay,
    mail: EmailMessage | bytes,
    to: tuple[str, ...] = (ADA,),
    sender: str = SHOP,
) -> None:
    """Send a mail that the relay does not take."""
    try:
        deliver(relay, mail, to=to, sender=sender)
    except smtplib.SMTPException:
        return
    raise AssertionError("The relay took it.")
