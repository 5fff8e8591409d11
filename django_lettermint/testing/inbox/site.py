"""The inbox's URLs and their responses, without sockets."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from django_lettermint.testing.records import ReceivedMessage

from . import pages
from .events import EVENTS, new_event
from .reading import read_parts

if TYPE_CHECKING:
    from django_lettermint.testing.relay import Relay

    from .mailbox import Mail, Mailbox

Query = Mapping[str, str]

#: The inbox's own pages: nothing but what this site serves, in no frame of others.
_OWN = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
#: The HTML of a mail: no scripts, no forms, no origin; links open new tabs.
_MAIL = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
)
_EMBEDDED = "style-src 'unsafe-inline'; img-src data:; font-src data:"
_REMOTE = (
    "style-src 'unsafe-inline' http: https:; img-src data: http: https:; "
    "font-src data: http: https:; media-src http: https:"
)
_FILE = "sandbox; default-src 'none'"

_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer in HTTP."""

    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/html; charset=utf-8"
    policy: str = _OWN
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def html(text: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    # Mail may hold halves of characters, which UTF-8 cannot.
    return Response(status=status, body=text.encode("utf-8", "replace"))


def problem(status: HTTPStatus, text: str) -> Response:
    return html(pages.problem(status.phrase, text), status)


def redirect(location: str) -> Response:
    """Redirect a browser after a POST."""
    return Response(status=HTTPStatus.SEE_OTHER, headers={"Location": location})


class Site:
    """The pages of an inbox."""

    def __init__(
        self,
        mailbox: Mailbox,
        relay: Relay,
        webhook_url: str | None,
        webhook_secret: str | None,
    ) -> None:
        self._mailbox = mailbox
        self._relay = relay
        self._webhook_url = webhook_url
        self._webhook_secret = webhook_secret or ""
        mail = r"/mail/(?P<mail_id>[0-9a-f-]{1,36})"
        self._routes: list[tuple[str, str, Callable[..., Response]]] = [
            ("GET", r"/", self.index),
            ("GET", r"/(?P<name>style\.css|inbox\.js|icon\.svg)", self.static),
            ("POST", r"/clear", self.clear),
            ("GET", rf"{mail}/(?P<view>html|text|headers|source|)", self.mail),
            ("GET", rf"{mail}/document", self.document),
            ("GET", rf"{mail}/message\.eml", self.download),
            ("GET", rf"{mail}/attachments/(?P<number>\d{{1,4}})", self.attachment),
            ("POST", rf"{mail}/events", self.post_event),
        ]

    def answer(self, method: str, target: str, body: bytes = b"") -> Response:
        """Return the response to a request; `target` is a path with its query."""
        path, _, query = target.partition("?")
        given = body.decode("utf-8", "replace") if method == "POST" else query
        fields = dict(urllib.parse.parse_qsl(given))
        matches = [
            (verb, found, view)
            for verb, pattern, view in self._routes
            if (found := re.fullmatch(pattern, path, re.ASCII))
        ]
        if not matches:
            return problem(HTTPStatus.NOT_FOUND, "There is no such page.")
        for verb, found, view in matches:
            if verb == method:
                return self._call(view, fields, found.groupdict())
        return problem(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not for this page.")

    def _call(
        self, view: Callable[..., Response], fields: Query, arguments: dict[str, str]
    ) -> Response:
        if "mail_id" not in arguments:
            return view(fields, **arguments)
        mail = self._mailbox.get(arguments.pop("mail_id"))
        if mail is None:
            gone = "This mail is no longer here: the inbox keeps the newest ones only."
            return problem(HTTPStatus.NOT_FOUND, gone)
        return view(fields, mail, **arguments)

    # All mails

    def index(self, query: Query) -> Response:
        # The version first: mail that arrives meanwhile makes the page fetch again.
        version = self._mailbox.version
        asked = query.get("q", "").strip()
        return html(pages.mail_list(self._mailbox, query=asked, version=version))

    def clear(self, query: Query) -> Response:
        self._mailbox.clear()
        return redirect("/")

    def static(self, query: Query, name: str) -> Response:
        return Response(
            content_type=_TYPES[name.rpartition(".")[2]],
            body=pages.asset(f"static/{name}").encode(),
        )

    # One mail

    def mail(self, query: Query, mail: Mail, view: str) -> Response:
        self._mailbox.opened(mail)
        deliveries = [
            each
            for each in self._relay.webhooks.deliveries
            if each.event.data.get("message_id") == mail.id
        ]
        return html(
            pages.mail_page(
                mail,
                view=view,
                remote="remote" in query,
                deliveries=deliveries,
                webhook_url=self._webhook_url,
            )
        )

    def document(self, query: Query, mail: Mail) -> Response:
        """The HTML of a mail, for the frame on its page."""
        remote = "remote" in query
        document = read_parts(mail.record).document(remote=remote)
        return Response(
            policy=_MAIL + (_REMOTE if remote else _EMBEDDED),
            headers={"Referrer-Policy": "no-referrer", "X-DNS-Prefetch-Control": "off"},
            body=document.encode("utf-8", "replace"),
        )

    def download(self, query: Query, mail: Mail) -> Response:
        return _file("message.eml", "message/rfc822", mail.record.content)

    def attachment(self, query: Query, mail: Mail, number: str) -> Response:
        attachments = read_parts(mail.record).attachments
        if int(number) >= len(attachments):
            return problem(HTTPStatus.NOT_FOUND, "This mail has no such attachment.")
        part = attachments[int(number)]
        return _file(part.safe_name, part.safe_type, part.octets)

    def post_event(self, fields: Query, mail: Mail) -> Response:
        """Post a webhook about the mail; the answer is on its page."""
        if not self._webhook_url:
            return problem(
                HTTPStatus.CONFLICT,
                "The relay does not know where to post: start it with --webhook URL "
                "--secret SECRET.",
            )
        record, name = mail.record, fields.get("event", "")
        recipient = fields.get("recipient", "")
        if (
            not isinstance(record, ReceivedMessage)
            or name not in EVENTS
            or recipient not in record.recipients
        ):
            return problem(
                HTTPStatus.BAD_REQUEST, "This mail has no such event or recipient."
            )
        self._relay.webhooks.post(
            self._webhook_url,
            self._webhook_secret,
            events=[new_event(record, name, recipient)],
        )
        return redirect(f"/mail/{mail.id}/#webhooks")


def _file(name: str, content_type: str, octets: bytes) -> Response:
    """A download (RFC 6266), which a browser never opens within this site."""
    plain = name.encode("ascii", "replace").decode()
    plain = re.sub(r"[\"\\?%]", "_", plain)
    encoded = urllib.parse.quote(name, safe="")
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"
    return Response(
        content_type=content_type,
        policy=_FILE,
        headers={"Content-Disposition": disposition},
        body=octets,
    )
