"""The inbox's pages: templates, filled in with what was received."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from django_lettermint.testing.records import ReceivedMessage

from .events import EVENTS, NAMES, next_step
from .reading import URL, Part, Parts, read_parts

if TYPE_CHECKING:
    from django_lettermint.testing.webhooks import WebhookDelivery

    from .mailbox import Mail, Record

#: Mails that a list shows at once; the search looks at all.
LISTED = 100
#: Octets of the source that its page shows.
_SOURCE = 500_000
_TEMPLATE = re.compile(r"^<!-- (\w+) -->$", re.MULTILINE)
_SECURITY = {
    "tls": "implicit TLS",
    "starttls": "STARTTLS",
    "plaintext": "no encryption",
}


class Html(str):
    """Text that is HTML; every other value is escaped when it is filled in."""

    __slots__ = ()


@cache
def asset(name: str) -> str:
    """Return the text of a file in this package."""
    return files(__package__).joinpath(name).read_text("utf-8")


@cache
def _templates() -> dict[str, Template]:
    """Return what stands below each `<!-- name -->` in the folder `templates`."""
    templates = {}
    for name in ("page", "list", "mail"):
        _, *found = _TEMPLATE.split(asset(f"templates/{name}.html"))
        for template, text in zip(found[::2], found[1::2], strict=True):
            templates[template] = Template(text.strip())
    return templates


def render(template: str, **values: object) -> Html:
    """Fill in a template."""
    escaped = {
        name: value if isinstance(value, Html) else html.escape(str(value))
        for name, value in values.items()
    }
    return Html(_templates()[template].substitute(escaped))


def join(rendered: Iterable[Html]) -> Html:
    return Html("\n".join(rendered))


def show_if(condition: object, template: str, **values: object) -> Html:
    return render(template, **values) if condition else Html()


def page(title: str, content: Html, *, version: str = "") -> str:
    """Return a whole page; with `version`, it follows the mailbox live."""
    return render("page", title=title, content=content, version=version)


# The list


def mail_list(mails: Iterable[Mail], *, query: str, version: str) -> str:
    """Return the page with the mails that a query finds."""
    everything = list(mails)
    found = [mail for mail in everything if mail.matches(query)]
    unread = sum(not mail.opened for mail in everything)
    content = render(
        "list",
        query=query,
        status=_status(found, everything, query),
        rows=join(map(_row, found[:LISTED])),
        hint=_hint(everything, found),
        clear=show_if(everything, "clear"),
    )
    return page(f"({unread}) Inbox" if unread else "Inbox", content, version=version)


def _status(found: Sequence[Mail], everything: Sequence[Mail], query: str) -> str:
    total = _count(len(everything), "mail")
    if query:
        return f"{len(found)} of {total}"
    if len(found) > LISTED:
        return f"{total}, the newest {LISTED} shown. Search finds the others."
    return total


def _hint(everything: Sequence[Mail], found: Sequence[Mail]) -> Html:
    if not everything:
        return render("empty")
    return show_if(not found, "nothing_found")


def _row(mail: Mail) -> Html:
    return render(
        "row",
        id=mail.id,
        state="" if mail.opened else "unread",
        unread=Html() if mail.opened else Html('<span class="unseen">Unread. </span>'),
        subject=mail.subject,
        parties=mail.parties,
        preview=mail.preview,
        time=_time(mail.record),
        chips=_chips(mail),
    )


def _chips(mail: Mail) -> Html:
    record = mail.record
    chips = []
    if mail.refusal:
        chips.append(render("chip", kind="bad", name="refused", value=mail.refusal))
    if isinstance(record, ReceivedMessage):
        chips += [
            render("chip", kind="", name=name, value=value)
            for name, value in (("route", record.route), ("tag", record.tag))
            if value
        ]
    if mail.attachments:
        files = _count(mail.attachments, "attachment")
        chips.append(render("chip", kind="", name=files, value=""))
    return join(chips)


# One mail

VIEWS = {"html": "HTML", "text": "Text", "headers": "Headers", "source": "Source"}


def mail_page(
    mail: Mail,
    *,
    view: str,
    remote: bool,
    deliveries: Sequence[WebhookDelivery],
    webhook_url: str | None,
) -> str:
    """Return the page of a mail; `view` is one of VIEWS, or empty for the best one."""
    record, parts = mail.record, read_parts(mail.record)
    views = {
        "html": parts.html is not None,
        "text": parts.text is not None,
        "headers": bool(record.content),
        "source": bool(record.content),
    }
    shown = [name for name, exists in views.items() if exists]
    if view not in shown:
        view = shown[0] if shown else ""
    return page(
        mail.subject,
        render(
            "mail",
            subject=mail.subject,
            refusal=show_if(mail.refusal, "refusal", text=mail.refusal),
            facts=_facts(mail),
            read=_read(record),
            content=show_if(
                shown,
                "content",
                tabs=_tabs(shown, view),
                view=_view(record, parts, view, remote=remote),
            ),
            attachments=_attachments(record, parts.attachments),
            webhooks=_webhooks(record, deliveries, webhook_url),
        ),
    )


def _facts(mail: Mail) -> Html:
    record, headers = mail.record, mail.record.headers
    security = f"{_SECURITY[record.security]}, connection {record.connection}"
    sender = record.mail_from or "<>"
    facts: list[tuple[str, object]] = [
        ("From", mail.sender),
        *((name, headers.get(name)) for name in ("To", "Cc", "Reply-To")),
        ("Envelope sender", record.recipients and sender),
        ("Envelope recipients", ", ".join(record.recipients)),
        ("Received", _time(record)),
        ("Size", record.content and size(len(record.content))),
        ("Connection", f"{security}, {record.tls}" if record.tls else security),
    ]
    return _list(facts)


def _list(facts: Iterable[tuple[str, object]]) -> Html:
    """Return the rows of a list of names and values, without those that are empty."""
    return join(
        render("fact", name=name, value=value) for name, value in facts if value
    )


def _read(record: Record) -> Html:
    """What Lettermint reads in the header of a message that is taken."""
    if not isinstance(record, ReceivedMessage):
        return Html()
    rows = [
        ("Route", record.route or "none: the project's default"),
        ("Tag", record.tag or "none"),
        *((f"Metadata {key}", value) for key, value in record.metadata.items()),
        ("Idempotency key", record.idempotency_key or "none"),
        ("Message id", record.id),
    ]
    return render("read", facts=_list(rows))


def _tabs(shown: Sequence[str], current: str) -> Html:
    tabs = join(
        render(
            "tab",
            view=name,
            title=VIEWS[name],
            current=Html(' aria-current="page"' if name == current else ""),
        )
        for name in shown
    )
    return render("tabs", tabs=tabs)


def _view(record: Record, parts: Parts, view: str, *, remote: bool) -> Html:
    if view == "html":
        notice = show_if(parts.has_remote_content and not remote, "remote")
        query = "?remote=1" if remote else ""
        return render("view_html", notice=notice, query=query)
    if view == "text" and parts.text:
        return render("view_text", text=_with_links(parts.text.text))
    if view == "headers":
        return render("view_headers", rows=join(_header_rows(record)))
    if view == "source":
        more = len(record.content) - _SOURCE
        return render(
            "view_source",
            source=record.content[:_SOURCE].decode("utf-8", "replace"),
            more=f"… and {size(more)} more." if more > 0 else "",
        )
    return Html()


def _with_links(text: str) -> Html:
    linked, end = [], 0
    for match in URL.finditer(text):
        linked += [
            html.escape(text[end : match.start()]),
            render("link", url=match[0]),
        ]
        end = match.end()
    return Html("".join([*linked, html.escape(text[end:])]))


def _header_rows(record: Record) -> Iterable[Html]:
    names = {name.lower() for name in record.headers}
    for name, value in record.headers.items():
        meaning = ""
        if isinstance(record, ReceivedMessage):
            meaning = _meaning(record, name.lower(), names)
        note = show_if(meaning, "meaning", text=meaning)
        yield render("header_row", name=name, value=value, meaning=note)


def _meaning(message: ReceivedMessage, name: str, names: set[str]) -> str:
    """Return what Lettermint reads in a header; empty for one that it passes on."""
    if name == "x-tag" and "x-lm-tag" in names:
        return "not read: X-LM-Tag comes first"
    if name in ("x-tag", "x-lm-tag"):
        return f"tag {message.tag}"
    if name == "x-lettermint-route":
        return f"route {message.route}"
    if name == "idempotency-key":
        return "idempotency key"
    for prefix in ("x-lm-metadata-", "x-metadata-"):
        if name.startswith(prefix):
            return _metadata_meaning(message, name.removeprefix(prefix))
    return ""


def _metadata_meaning(message: ReceivedMessage, key: str) -> str:
    keys = (each for each in message.metadata if each.lower() == key)
    return "".join(f"metadata {each}: {message.metadata[each]}" for each in keys)


def _attachments(record: Record, attachments: Sequence[Part]) -> Html:
    rows = join(
        render(
            "attachment",
            number=number,
            name=part.safe_name,
            type=part.content_type,
            size=size(len(part.octets)),
        )
        for number, part in enumerate(attachments)
    )
    return show_if(attachments, "attachments", rows=rows)


def _webhooks(
    record: Record, deliveries: Sequence[WebhookDelivery], url: str | None
) -> Html:
    if not isinstance(record, ReceivedMessage):
        return Html()
    form = Html()
    if url:
        recipients = join(
            render("recipient", address=address) for address in record.recipients
        )
        buttons = join(render("button", event=event) for event in EVENTS)
        form = render("events", recipients=recipients, buttons=buttons, url=url)
    return render(
        "webhooks",
        form=form or render("no_webhooks"),
        answers=show_if(
            deliveries, "answers", rows=join(map(_answer, reversed(deliveries)))
        ),
    )


def _answer(delivery: WebhookDelivery) -> Html:
    event = delivery.event.event
    step = next_step(delivery)
    return render(
        "answer",
        event=NAMES.get(event, event),
        recipient=delivery.event.data.get("recipient", ""),
        kind="bad" if step else "good",
        answer=delivery.status or "no answer",
        step=show_if(step, "step", text=step),
    )


def problem(title: str, text: str) -> str:
    """Return an error page, which says what to do."""
    return page(title, render("problem", title=title, text=text))


# Small things


def _time(record: Record) -> Html:
    moment = datetime.fromtimestamp(record.received_at, UTC)
    return render("time", iso=moment.isoformat(), text=f"{moment:%H:%M:%S} UTC")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(octets: int) -> str:
    """Return a size with its unit."""
    if octets < 1000:
        return f"{octets} bytes"
    return f"{octets / 1000:.1f} kB" if octets < 10**6 else f"{octets / 10**6:.1f} MB"
