"""A relay and its inbox, seen by a reader's plain HTTP client."""

from __future__ import annotations

import html
import http.client
import re
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django_lettermint.testing import Relay
from django_lettermint.testing.inbox import Inbox
from tests.testing.records import ADA, SHOP
from tests.testing.relay_client import client

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from email.message import EmailMessage


def text_of(source: str) -> str:
    """Return what a page says, without its markup."""
    without = re.sub(r"<(title|script)\b.*?</\1>|<[^>]*>", " ", source)
    return " ".join(html.unescape(without).split())


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
        return text_of(self.source)

    @property
    def policy(self) -> dict[str, str]:
        """The directives of its Content-Security-Policy."""
        directives = self.headers["Content-Security-Policy"].split(";")
        parts = (each.strip().partition(" ") for each in directives)
        return {name: value for name, _, value in parts}


@dataclass(frozen=True)
class Reader:
    relay: Relay
    inbox: Inbox

    @property
    def port(self) -> int:
        return urllib.parse.urlsplit(self.inbox.url).port or 0

    def deliver(
        self,
        *mails: EmailMessage | bytes,
        to: tuple[str, ...] = (ADA,),
        security: str = "plaintext",
    ) -> None:
        """Send mails by a client that shares no code with the package."""
        with client(self.relay, security) as connection:
            for mail in mails:
                octets = mail if isinstance(mail, bytes) else mail.as_bytes()
                connection.sendmail(SHOP, to, octets)

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            yield connection
        finally:
            connection.close()

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str | None] | None = None,
        *,
        body: str = "",
    ) -> Answer:
        """Ask as a browser on the inbox's own pages does; None leaves a header out."""
        own: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}"}
        if method == "POST":
            own["Origin"] = self.inbox.url.rstrip("/")
        own["Content-Length"] = str(len(body))
        with self.connected() as connection:
            connection.putrequest(
                method, path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in (own | dict(headers or {})).items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(body.encode())
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def get(self, path: str = "/", **headers: str | None) -> Answer:
        return self.request("GET", path, headers)

    def post(self, path: str, **fields: str) -> Answer:
        return self.request("POST", path, body=urllib.parse.urlencode(fields))

    @property
    def subjects(self) -> list[str]:
        """The subjects in the list, from top to bottom."""
        found = re.findall(r"/mail/.*?<bdi>(.*?)</bdi></a>", self.get().source)
        return [html.unescape(each) for each in found]

    @property
    def newest(self) -> str:
        """The path of the newest mail's page."""
        found = re.search(r'href="(/mail/[^"]+)"', self.get().source)
        assert found, "no mail is in the list"
        return found[1]


@contextmanager
def reading(
    webhook_url: str | None = None, webhook_secret: str | None = None
) -> Iterator[Reader]:
    with (
        Relay(ports=dict.fromkeys(("plaintext", "starttls", "tls"), 0)) as relay,
        Inbox(
            relay, port=0, webhook_url=webhook_url, webhook_secret=webhook_secret
        ) as inbox,
    ):
        yield Reader(relay, inbox)
