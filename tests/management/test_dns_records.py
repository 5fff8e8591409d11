"""The DNS records that `manage.py test_lettermint --dns` looks for, in a real DNS."""

from __future__ import annotations

from typing import Any

import pytest

from django_lettermint.management.dns_records import Domain, Status, look_up
from django_lettermint.management.next_steps import Failed
from tests.management.dnsserver import HANG, dns_server

OK, MISSING, WRONG, UNKNOWN = Status

RETURN_PATH = "lm-bounces.shop.test"
LM1, LM2 = "lm1._domainkey.shop.test", "lm2._domainkey.shop.test"
OLDER = "lettermint._domainkey.shop.test"
DMARC = "_dmarc.shop.test"

GOOD: dict[str, dict[str, list[str]]] = {
    "shop.test": {"SOA": ["ns.test. admin.test. 1 2 3 4 5"], "MX": ["10 mx.test."]},
    RETURN_PATH: {"CNAME": ["bounces.lmta.net."]},
    LM1: {"CNAME": ["lm1.k3y.dkim.lmta.net."]},
    LM2: {"CNAME": ["lm2.k3y.dkim.lmta.net."]},
    DMARC: {"TXT": ['"v=DMARC1; p=reject"']},
}
KEY = {"TXT": ['"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3" "DQEBAQUAA4GNADCBiQ=="']}


def zone(**changes: Any) -> dict[str, dict[str, list[str]]]:
    """Return the good zone with other records, by the constants above; None for none."""
    changed = {globals()[name]: records for name, records in changes.items()}
    return {name: value for name, value in (GOOD | changed).items() if value}


def txt(*texts: str) -> dict[str, list[str]]:
    return {"TXT": [f'"{text}"' for text in texts]}


def cname(target: str) -> dict[str, list[str]]:
    return {"CNAME": [target]}


def statuses(found: Domain) -> dict[str, Status]:
    return {record.name: record.status for record in found.records}


def failure(found: Domain) -> Failed:
    with pytest.raises(Failed) as raised:
        found.require()
    assert raised.value.step == "dns"
    return raised.value


def test_a_domain_with_all_records_is_good() -> None:
    with dns_server(GOOD):
        found = look_up("shop.test")

    assert statuses(found) == dict.fromkeys((RETURN_PATH, LM1, LM2, DMARC), OK)
    assert found.exists
    assert list(found.to_enter()) == []
    found.require()


@pytest.mark.parametrize(
    ("missing", "entry"),
    [
        ("RETURN_PATH", f"{RETURN_PATH}  CNAME  bounces.lmta.net"),
        ("LM1", f"{LM1}  CNAME  lm1.k3y.dkim.lmta.net"),
        ("LM2", f"{LM2}  CNAME  lm2.k3y.dkim.lmta.net"),
        ("DMARC", f"{DMARC}  TXT    v=DMARC1; p=none"),
    ],
)
def test_a_missing_record_is_listed_with_its_value(missing: str, entry: str) -> None:
    with dns_server(zone(**{missing: None})):
        found = look_up("shop.test")

    name = globals()[missing]
    assert [each for each, status in statuses(found).items() if status is MISSING] == [
        name
    ]
    blank, head, row = found.to_enter()
    assert (blank, row) == ("", f"  {entry}")
    assert head.split() == ["Name", "Type", "Value"]
    assert str(failure(found)) == f"{name} is missing"
    assert "Enter the records" in failure(found).next_step


@pytest.mark.parametrize(
    ("changes", "name", "detail"),
    [
        ({"RETURN_PATH": cname("shop.test.")}, RETURN_PATH, "alias of shop.test"),
        ({"LM1": cname("lm2.k3y.dkim.lmta.net.")}, LM1, "alias of lm2.k3y.dkim"),
        ({"LM2": cname("lm2.dkim.lmta.net.")}, LM2, "alias of lm2.dkim.lmta.net"),
        ({"RETURN_PATH": {"A": ["192.0.2.7"]}}, RETURN_PATH, "but has A 192.0.2.7"),
        ({"LM1": txt("v=DKIM1; p=AAAA")}, LM1, "but has TXT v=DKIM1; p=AAAA"),
        ({"DMARC": txt("v=dmarc1; p=none")}, DMARC, "not begin with v=DMARC1: v=dm"),
        ({"DMARC": txt("v=DMARC10; p=none")}, DMARC, "does not begin with v=DMARC1"),
        ({"DMARC": txt("v=DMARC1; p=maybe")}, DMARC, "lacks p="),
        (
            {"DMARC": txt("v=DMARC1; p=none", "v=DMARC1; p=reject")},
            DMARC,
            "has 2 policies, so none of them applies",
        ),
    ],
)
def test_a_wrong_value_is_shown(
    changes: dict[str, Any], name: str, detail: str
) -> None:
    with dns_server(zone(**changes)):
        found = look_up("shop.test")

    (record,) = (record for record in found.records if not record.ok)
    assert (record.name, record.status) == (name, WRONG)
    assert detail in record.detail
    assert record.name in "\n".join(found.to_enter())
    assert detail in str(failure(found))


@pytest.mark.parametrize(
    "changes",
    [
        {"DMARC": txt("v=DMARC1; p=none")},
        {"DMARC": txt("v = DMARC1 ;p = Quarantine; rua=mailto:a@shop.test")},
        {"DMARC": txt("v=spf1 -all", "v=DMARC1; p=reject")},
        {"DMARC": {"TXT": ['"v=DMARC1; p=" "reject; rua=mailto:" "a@shop.test"']}},
        {"RETURN_PATH": cname("Bounces.LMTA.net.")},
        {"LM1": None, "LM2": None, "OLDER": KEY},
        {"OLDER": txt("v=DKIM1; p=")},
    ],
)
def test_records_may_be_written_in_other_ways(changes: dict[str, Any]) -> None:
    with dns_server(zone(**changes)):
        found = look_up("shop.test")

    assert set(statuses(found).values()) == {OK}
    # Beside the aliases, an older key does not matter.
    assert (OLDER in statuses(found)) is ("LM1" in changes and "LM2" in changes)
    found.require()


# -- DKIM has an older form: one key instead of two aliases ------------------------------


@pytest.mark.parametrize("text", ["v=DKIM1; p=", "v=DKIM1", "v=DKIM1; p=MIG...=", "hi"])
def test_an_older_record_without_a_key_is_wrong(text: str) -> None:
    with dns_server(zone(LM1=None, LM2=None, OLDER=txt(text))):
        found = look_up("shop.test")

    assert statuses(found)[OLDER] is WRONG
    assert f"{OLDER} has no valid key (p=): {text}" in str(failure(found))


def test_one_alias_is_not_enough_though_there_is_an_older_key() -> None:
    with dns_server(zone(LM2=None, OLDER=KEY)):
        assert statuses(look_up("shop.test"))[LM2] is MISSING


def test_without_any_dkim_the_aliases_are_asked_for_and_the_id_left_open() -> None:
    with dns_server(zone(LM1=None, LM2=None)):
        table = "\n".join(look_up("shop.test").to_enter())

    assert f"{LM1}  CNAME  lm1.<id>.dkim.lmta.net" in table
    assert f"{LM2}  CNAME  lm2.<id>.dkim.lmta.net" in table
    assert OLDER not in table


# -- subdomains --------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["news.shop.test", "a.b.c.shop.test"])
def test_a_subdomain_inherits_the_policy_of_the_domain_above(domain: str) -> None:
    with dns_server(GOOD):
        found = look_up(domain)

    policy = found.records[-1]
    assert policy.ok
    inherited = f"_dmarc.{domain} is inherited from {DMARC}, which has v=DMARC1; p=rej"
    assert policy.detail.startswith(inherited)
    assert set(statuses(found).values()) == {OK, MISSING}


def test_the_policy_of_a_subdomain_comes_before_the_one_above() -> None:
    own = {"_dmarc.news.shop.test": txt("v=DMARC1")}
    with dns_server({**GOOD, **own}):
        policy = look_up("news.shop.test").records[-1]

    assert policy.detail.startswith("_dmarc.news.shop.test lacks p=")


@pytest.mark.parametrize("name", ["_dmarc.test", "_dmarc.co.test"])
def test_the_policy_of_a_registry_does_not_count(name: str) -> None:
    below = {"www.shop.co.test": {"A": ["192.0.2.1"]}}
    with dns_server({name: txt("v=DMARC1; p=reject; psd=y"), **below}):
        found = look_up("shop.co.test")

    assert found.records[-1].status is MISSING
    # A domain without records may exist.
    assert found.exists
    assert "does not exist" not in str(failure(found))


def test_a_domain_of_many_labels_costs_no_more_look_ups_than_dmarc_makes() -> None:
    domain = ".".join("abcdefghijklm") + ".shop.test"
    with dns_server(GOOD) as server:
        assert look_up(domain).records[-1].ok

        policies = [name for name in server.asked if name.startswith("_dmarc.")]
    assert len(policies) == 7
    assert policies[:2] == [f"_dmarc.{domain}", "_dmarc.i.j.k.l.m.shop.test"]


# -- when the DNS does not answer --------------------------------------------------------


def test_a_domain_that_does_not_exist_is_named() -> None:
    with dns_server(GOOD):
        found = look_up("shpo.test")

    assert not found.exists
    assert set(statuses(found).values()) == {MISSING}
    assert "the domain shpo.test does not exist" in str(failure(found))
    assert "Check the spelling of the sender" in failure(found).next_step


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (HANG, "no answer in time"),
        ("SERVFAIL", "the resolver answered SERVFAIL"),
        ("REFUSED", "the resolver answered REFUSED"),
    ],
)
def test_a_resolver_that_fails_is_named(fault: str, reason: str) -> None:
    with dns_server(GOOD, {"*": fault}):
        # Long where the resolver does answer.
        found = look_up("shop.test", 0.1 if fault == HANG else 30)

    assert set(statuses(found).values()) == {UNKNOWN}
    assert found.exists
    assert list(found.to_enter()) == []
    assert f"{DMARC} could not be looked up: {reason}" in str(failure(found))
    assert failure(found).next_step.startswith("Run it again")


def test_unknown_and_missing_records_have_a_next_step_each() -> None:
    with dns_server(zone(LM1=None), {DMARC: "SERVFAIL"}):
        found = look_up("shop.test")

    assert [*statuses(found).values()] == [OK, MISSING, OK, UNKNOWN]
    assert "Enter the records" in failure(found).next_step
    assert "Run it again" in failure(found).next_step


def test_a_name_too_long_for_the_dns_cannot_be_looked_up() -> None:
    domain = ".".join(["a" * 60] * 4) + ".test"
    with dns_server(GOOD):
        assert set(statuses(look_up(domain)).values()) == {UNKNOWN}
