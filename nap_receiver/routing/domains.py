"""Domains of apps: one name from nap for each app, and the domains that owners add.

Below `<prefix>/`:
    domains/<domain>       `{"app": …}`: whose it is; whoever writes it first has it
    domains                `{"app": …}`: who added one last. Each addition writes it, and only if it is as before
                           all domains were read: else two could add names of one line at once
    apps/<app>/proof       `{"token": …}`: what a DNS record must have for the app to get a domain
    certificates/<app>     `{"names": […], "chain": PEM, "key": PEM}`: what its owner brought for its names
"""

import ipaddress
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from nap_receiver.auth.access import no_such
from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import EtcdSettings, RouterSettings, Settings
from nap_receiver.model.app_url import has_router, own_name
from nap_receiver.routing.ownership import LONGEST, base_of, is_public_suffix
from nap_receiver.store.etcdctl import Entry, Reader

if TYPE_CHECKING:  # etcd's library is for those who call it
    from nap_receiver.store.etcd import Etcd

MOST = 40
"""Domains of one command: each is up to two conditions of a transaction, of which etcd takes 128."""

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, section 2.1
_HOW = "Write its name alone, such as www.example.org, or *.example.org for each name with one more label."


class _Domain(msgspec.Struct):
    app: str


def checked_domain(domain: str, router: RouterSettings, *, is_operator: bool = False) -> str:
    """`domain` as `normal` has it. Raises `NapError` where no app can have it, or none but by the operator."""
    name = normal(domain)
    if is_own(name, router):
        raise NapError(
            f"{name} is nap's own to give", advice=f"Below {router.domain} every app has its one name already."
        )
    if router.domain.endswith(f".{base_of(name)}") and not is_operator:
        raise NapError(
            f"{name} is above {router.domain}, below which all apps have their names",
            advice="Ask the operator of this nap to add it.",
        )
    if is_public_suffix(name):
        raise NapError(
            f"{name} is not one owner's: anybody can register names below {base_of(name)} (publicsuffix.org)",
            advice="Add a name below it that is yours.",
        )
    return name


def is_own(name: str, router: RouterSettings) -> bool:
    """Whether nobody can bring this name, because it is the router's domain, or below it."""
    return bool(router.domain) and f".{name}".endswith(f".{router.domain}")


def normal(domain: str) -> str:
    """`domain` as it is looked up: in small letters, in ASCII, without a dot at its end. Raises `NapError`."""
    wildcard, rest = ("*.", domain[2:]) if domain.startswith("*.") else ("", domain)
    try:
        return wildcard + _normal(rest, len(wildcard))
    except ValueError as fault:
        raise NapError(f"{domain[:80]!a} is no domain: {fault}", advice=_HOW) from fault


def covers(names: Collection[str], name: str) -> bool:
    """Whether `name` is one of these, or one that a wildcard among them stands for."""
    return name in names or f"*.{name.partition('.')[2]}" in names


def domains_of(etcd: Reader, places: EtcdSettings, app: str) -> list[str]:
    """The domains that were brought for the app."""
    prefix = f"{places.domains}/"
    return [entry.key.removeprefix(prefix) for entry in etcd.below(prefix).entries if _holder(entry) == app]


def names_of(etcd: Reader, settings: Settings, app: str) -> list[str]:
    """All names that the app answers to, its own first."""
    own = [own_name(app, settings.router)] if has_router(settings) else []
    return own + domains_of(etcd, settings.etcd, app)


def token_of(etcd: "Etcd", places: EtcdSettings, app: str) -> str:
    """What a DNS record must have for the app to get a domain; made when it is asked for first.

    Nobody can choose it, and it ends with the app: a record says nothing about a later app of the same name.
    """
    while True:
        if made := etcd.get(places.proof_of(app)):
            token: str = made.value["token"]
            return token
        access = etcd.get(places.access_of(app))
        if access is None:
            raise no_such(app)
        unchanged = {access.key: access.revision, places.proof_of(app): 0}
        etcd.write({places.proof_of(app): {"token": secrets.token_hex(16)}}, unchanged=unchanged)


def add_domains(
    etcd: "Etcd", places: EtcdSettings, app: str, domains: Sequence[str], most: int, user: str | None = None
) -> None:
    """Have the app, which may have `most`, answer to these domains. Raises `NapError`, and adds none, where it cannot.

    No domain is another app's, nor above or below one, unless `user` owns that app too, or is None: the operator.
    """
    _require_few(domains)
    keys = [f"{places.domains}/{domain}" for domain in domains]
    while True:
        access, last = etcd.get(places.access_of(app)), etcd.get(places.domains)
        if access is None:
            raise no_such(app)
        unchanged = {access.key: access.revision, places.domains: last.revision if last else 0}
        there = {entry.key: entry for entry in etcd.below(f"{places.domains}/").entries}
        holders = {key.removeprefix(f"{places.domains}/"): _holder(entry) for key, entry in there.items()}
        has = {domain for domain, holder in holders.items() if holder == app}
        if len(has.union(domains)) > max(most, len(has)):
            raise NapError(
                f"{app} has {len(has)} domains and may have {most} (router.max_domains)",
                advice=f"Remove some: domains:remove {app} …, or ask the operator of this nap.",
            )
        for key, domain in zip(keys, domains, strict=True):
            unchanged[key] = there[key].revision if key in there else 0
            holder = holders.get(domain, "")
            if holder and holder != app:
                access_to = places.access_of(holder)
                if etcd.get(access_to):
                    raise NapError(f"{domain} is another app's", advice="Its owner can give it up: domains:remove")
                unchanged[access_to] = 0  # an app that is gone has no domains
        if user is not None:
            _require_apart(etcd, places, app, domains, holders, user)
        if etcd.write({key: {"app": app} for key in [places.domains, *keys]}, unchanged=unchanged):
            return


def _require_apart(
    etcd: "Etcd", places: EtcdSettings, app: str, domains: Sequence[str], holders: Mapping[str, str], user: str
) -> None:
    """Raise `NapError` where a domain is above or below one of an app that `user` does not own."""
    owned = {app: True, "": True}

    def is_owned(holder: str) -> bool:
        if holder not in owned:
            access = etcd.get(places.access_of(holder))
            owned[holder] = access is None or access.value["users"].get(user) == "owner"
        return owned[holder]

    for domain, other in _in_line(domains, holders):
        if not is_owned(holders[other]):
            where = "above" if domain.count(".") < other.count(".") else "below"
            raise NapError(
                f"{domain} is {where} {other}, a domain of another app",
                advice="Its owner can give it up (domains:remove), or the operator of this nap can add yours.",
            )


def _in_line(domains: Iterable[str], others: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each two, of these and those, of which one is above or below the other; a wildcard is below its own base."""
    at = {base_of(domain): domain for domain in domains}
    above = {each: domain for base, domain in at.items() for each in _line(base)}
    for other in others:
        base = base_of(other)
        found = above.get(base) or next((at[each] for each in _line(base) if each in at), None)
        if found:
            yield found, other


def _line(domain: str) -> Iterator[str]:
    """The domain, and each that it is below."""
    while domain:
        yield domain
        domain = domain.partition(".")[2]


def remove_domains(etcd: "Etcd", places: EtcdSettings, app: str, domains: Sequence[str]) -> None:
    """Have the app answer to these domains no more. Raises `NapError`, and removes none, where it lacks one."""
    _require_few(domains)
    while True:
        there = {entry.key: entry for entry in etcd.below(f"{places.domains}/").entries if _holder(entry) == app}
        keys = [f"{places.domains}/{domain}" for domain in domains]
        for key, domain in zip(keys, domains, strict=True):
            if key not in there:
                raise NapError(f"{app} has no domain {domain}", advice=f"`domains {app}` lists those it has.")
        if etcd.write(dict.fromkeys(keys), unchanged={key: there[key].revision for key in keys}):
            return


def give_up_all(etcd: "Etcd", places: EtcdSettings, app: str, heir: str = "") -> None:
    """Leave the app without domains and certificate; with an `heir`, that is the app that has them from then on."""
    domain = {"app": heir} if heir else None
    while had := [entry for entry in etcd.below(f"{places.domains}/").entries if _holder(entry) == app][:MOST]:
        # What its owner removes in this moment may be another's by now.
        etcd.write({each.key: domain for each in had}, unchanged={each.key: each.revision for each in had})
    if certificate := etcd.get(places.certificate_of(app)):
        changes: dict[str, object] = {certificate.key: None}
        if heir:
            changes[places.certificate_of(heir)] = certificate.value
        etcd.write(changes)


def _holder(entry: Entry) -> str:
    """Whose domain it is; nobody's where somebody else wrote the entry, and it does not tell."""
    try:
        return msgspec.convert(entry.value, _Domain).app
    except msgspec.ValidationError:
        return ""


def _require_few(domains: Sequence[str]) -> None:
    if len(domains) > MOST:
        raise NapError(f"those are {len(domains)} domains, and one command takes {MOST}")


def _normal(domain: str, before: int) -> str:
    """`domain` as it is looked up, with `before` characters in front. Raises `ValueError` with what it is instead."""
    if "/" in domain:
        raise ValueError("it is a URL")
    if _is_address(domain):
        raise ValueError("it is an address")
    if ":" in domain:
        raise ValueError("it has a port")
    if len(domain) > 4 * LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters")
    name = domain.lower() if domain.isascii() and "xn--" not in domain.lower() else _in_ascii(domain)
    name = name.removesuffix(".")
    labels = name.split(".")
    if "*" in name:
        raise ValueError("a * stands for all of the first label, and for no other")
    if not all(labels):
        raise ValueError("one of its labels is empty")
    if len(labels) == 1:
        raise ValueError("it has one label, and needs two" + (" besides the *" if before else ""))
    if len(name) + before > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters")
    if not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("a label has up to 63 letters, digits and, between them, dashes")
    if labels[-1].isdecimal():
        raise ValueError("it is an address")  # to browsers, even if it is none
    return name


def _in_ascii(domain: str) -> str:
    """An internationalised domain in ASCII. Raises `ValueError` where it can be none."""
    import idna  # a hundredth of a second, for those few

    try:
        return idna.encode(domain, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError("it has letters, or an order of them, that domains do not have") from error


def _is_address(domain: str) -> bool:
    try:
        ipaddress.ip_address(domain.strip("[]"))
    except ValueError:
        return False
    return True
