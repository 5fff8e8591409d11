"""The DNS records that Lettermint asks for, of a sender's domain; needs dnspython."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum

import dns.exception
import dns.resolver
from dns.rdtypes.ANY.TXT import TXT

from .next_steps import Failed

#: Seconds for all look-ups together.
PATIENCE = 5.0


class Status(StrEnum):
    """Whether a record is as it should be."""

    OK = "ok"
    MISSING = "missing"
    WRONG = "wrong"
    #: The resolver did not answer.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record as it should be, and what was found instead."""

    purpose: str
    name: str
    type: str
    value: str
    status: Status
    detail: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Return whether the record is as it should be."""
        return self.status is Status.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A sender's domain with the records that Lettermint asks for."""

    name: str
    exists: bool
    records: Sequence[Record]

    def to_enter(self) -> Iterator[str]:
        """Yield the lines of a table of what is missing or wrong; none if nothing is."""
        rows = [
            (each.name, each.type, each.value)
            for each in self.records
            if each.status in (Status.MISSING, Status.WRONG)
        ]
        if rows:
            width = max(len(name) for name, _, _ in rows)
            yield ""
            for name, kind, value in (("Name", "Type", "Value"), *rows):
                yield f"  {name:<{width}}  {kind:<5}  {value}"

    def require(self) -> None:
        """Raise Failed unless all records are as they should be."""
        bad = [each for each in self.records if not each.ok]
        if not bad:
            return
        text = "; ".join(each.detail for each in bad)
        steps = []
        if not self.exists:
            text = f"the domain {self.name} does not exist; {text}"
            steps.append(_SPELLING)
        statuses = {each.status for each in bad}
        if statuses != {Status.UNKNOWN}:
            steps.append(_ENTER)
        if Status.UNKNOWN in statuses:
            steps.append(_RESOLVER)
        raise Failed(LookupError(text), "dns", " ".join(steps))


_SPELLING = (
    "Check the spelling of the sender (--from, DEFAULT_FROM_EMAIL). If it is right, "
    "register the domain first, unless it is a subdomain of yours."
)
_ENTER = (
    "Enter the records of the table where the domain's DNS is managed. The Lettermint "
    "dashboard shows them, too, with what <id> stands for. Resolvers may cache for "
    "an hour that a record was missing."
)
_RESOLVER = (
    "Run it again; if there is still no answer, check this machine's resolver "
    "(/etc/resolv.conf) and the domain's name servers."
)


def look_up(domain: str, patience: float = PATIENCE) -> Domain:
    """Look for all records at once; `patience` is in seconds."""
    until = time.monotonic() + patience
    with ThreadPoolExecutor(len(_RECORDS) + 1, "lettermint-dns") as threads:
        exists = threads.submit(_exists, domain, until)
        found = threads.map(lambda each: _find(each, domain, until), _RECORDS)
        older, return_path, first, second, policy = found
    # Older projects have a key of their own instead of two aliases.
    only_older = {first.status, second.status} == {Status.MISSING} != {older.status}
    dkim = [older] if only_older else _with_id(first, second)
    return Domain(
        name=domain, exists=exists.result(), records=[return_path, *dkim, policy]
    )


def _with_id(first: Record, second: Record) -> list[Record]:
    """Name the project's id in both values if one of the records has it."""
    pair = (first, second)
    ids = [each.detail.split(".")[-4] for each in pair if each.ok]
    known = ids[0] if ids else "<id>"
    return [replace(each, value=each.value.replace("<id>", known)) for each in pair]


#: A status, and what to say after the record's name.
_Finding = tuple[Status, str]
#: Looks up a name below a domain; takes the value wanted and a time (monotonic).
_Look = Callable[[str, str, str, float], _Finding]


def _find(
    wanted: tuple[str, str, str, str, _Look], domain: str, until: float
) -> Record:
    purpose, label, kind, value, look = wanted
    name = f"{label}.{domain}"
    began = time.monotonic()
    try:
        status, detail = look(label, domain, value, until)
    except _NoAnswer as error:
        status, detail = Status.UNKNOWN, f"could not be looked up: {error}"
    return Record(
        purpose=purpose,
        name=name,
        type=kind,
        value=value,
        status=status,
        detail=f"{name} {detail}",
        seconds=round(time.monotonic() - began, 6),
    )


def _alias(name: str, domain: str, value: str, until: float) -> _Finding:
    place = f"{name}.{domain}"
    pattern = re.escape(value).replace("<id>", r"[^.]+")
    for target in _values(place, "CNAME", until):
        right = re.fullmatch(pattern, target, re.IGNORECASE)
        return Status.OK if right else Status.WRONG, f"is an alias of {target}"
    # A DNS provider that proxies a name answers in the place of its target.
    for kind in ("A", "TXT"):
        for found in _values(place, kind, until):
            return Status.WRONG, f"is not an alias (CNAME), but has {kind} {found}"
    return Status.MISSING, "is missing"


def _key(name: str, domain: str, value: str, until: float) -> _Finding:
    """Look for a key of DKIM (RFC 6376 section 3.6.1)."""
    found = _values(f"{name}.{domain}", "TXT", until)
    for text in found:
        if _is_base64(_tags(text).get("p", "")):
            return Status.OK, "has a key"
    if found:
        return Status.WRONG, f"has no valid key (p=): {found[0]}"
    return Status.MISSING, "is missing"


def _policy(name: str, domain: str, value: str, until: float) -> _Finding:
    """Look for a policy of DMARC, of the domain or of the next one above that has one."""
    labels = domain.split(".")
    # DMARC itself looks at no more than eight names. One label is a registry's.
    parents = range(max(1, len(labels) - 7), len(labels) - 1)
    for above in (domain, *(".".join(labels[count:]) for count in parents)):
        place = f"{name}.{above}"
        inherited = "" if above == domain else f"is inherited from {place}, which "
        found = [text for text in _values(place, "TXT", until) if _is_policy(text)]
        if len(found) > 1:
            return (
                Status.WRONG,
                f"{inherited}has {len(found)} policies, so none of them applies",
            )
        for text in found:
            if not re.match(r"v\s*=\s*DMARC1\s*(;|$)", text):
                return Status.WRONG, f"{inherited}does not begin with v=DMARC1: {text}"
            if _tags(text).get("p", "").lower() not in _POLICIES:
                return (
                    Status.WRONG,
                    f"{inherited}lacks p=none, quarantine or reject: {text}",
                )
            return Status.OK, f"{inherited}has {text}"
    return Status.MISSING, "is missing"


_POLICIES = ("none", "quarantine", "reject")


def _is_policy(text: str) -> bool:
    """Return whether a text is meant as a policy, and not that of a public suffix."""
    return "dmarc" in text.lower() and _tags(text).get("psd") != "y"


def _tags(text: str) -> dict[str, str]:
    """Parse the list of tags that DKIM and DMARC share (RFC 6376 section 3.2)."""
    pairs = (each.partition("=") for each in text.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode("".join(text.split()), validate=True))
    except ValueError:
        return False


#: Purpose, name below the domain, type and value, and what looks for it.
_RECORDS: tuple[tuple[str, str, str, str, _Look], ...] = (
    ("DKIM", "lettermint._domainkey", "TXT", "(see the dashboard)", _key),
    ("return path", "lm-bounces", "CNAME", "bounces.lmta.net", _alias),
    ("DKIM", "lm1._domainkey", "CNAME", "lm1.<id>.dkim.lmta.net", _alias),
    ("DKIM", "lm2._domainkey", "CNAME", "lm2.<id>.dkim.lmta.net", _alias),
    ("DMARC", "_dmarc", "TXT", "v=DMARC1; p=none", _policy),
)


class _NoAnswer(Exception):
    """The resolver did not answer the question."""


def _exists(domain: str, until: float) -> bool:
    """Return whether there is such a name, or one below it; if in doubt, True."""
    try:
        _resolve(domain, "SOA", until)
    except dns.resolver.NXDOMAIN:
        return False
    except _NoAnswer:
        pass
    return True


def _values(name: str, kind: str, until: float) -> list[str]:
    """Return the records of a type; raise _NoAnswer if there may be others."""
    try:
        answer = _resolve(name, kind, until)
    except dns.resolver.NXDOMAIN:
        return []
    return [
        # A long text comes in pieces, which belong together without a blank.
        b"".join(each.strings).decode("utf-8", "replace")
        if isinstance(each, TXT)
        else each.to_text().removesuffix(".")
        for each in answer.rrset or ()
    ]


def _resolve(name: str, kind: str, until: float) -> dns.resolver.Answer:
    seconds = max(0.001, until - time.monotonic())
    try:
        return dns.resolver.resolve(
            name, kind, lifetime=seconds, search=False, raise_on_no_answer=False
        )
    except dns.resolver.NXDOMAIN:
        raise
    except dns.resolver.LifetimeTimeout:
        raise _NoAnswer("no answer in time") from None
    except dns.resolver.NoNameservers as error:
        answers = sorted({str(each[3]) for each in error.kwargs["errors"]})
        raise _NoAnswer(f"the resolver answered {', '.join(answers)}") from None
    except dns.exception.DNSException as error:
        raise _NoAnswer(str(error)) from None
