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
_HOW = "Write a name such as www.example.org, or *.example.org for all names with one more label."


class _Domain(msgspec.Struct):
    app: str


def checked_domain(domain: str, router: RouterSettings, *, is_operator: bool = False) -> str:
    """Return `domain` as `normal` formats it. Raises `NapError` if no app, or only the operator, may have it."""
    name = normal(domain)
    if is_own(name, router):
        raise NapError(
            f"{name} cannot be added: nap assigns the names below {router.domain}",
            advice="Each app already has one: domains APP",
        )
    if router.domain.endswith(f".{base_of(name)}") and not is_operator:
        raise NapError(
            f"{name} is above {router.domain}, the domain of all apps; only the operator can add it",
            advice="Ask the operator of this nap to add it.",
        )
    if is_public_suffix(name):
        raise NapError(
            f"{name} cannot be added: anybody can register names below {base_of(name)} (publicsuffix.org)",
            advice="Add a name that you have registered below it.",
        )
    return name


def is_own(name: str, router: RouterSettings) -> bool:
    """Return whether the name is the router's domain or below it, so that nobody can add it."""
    return bool(router.domain) and f".{name}".endswith(f".{router.domain}")


def normal(domain: str) -> str:
    """Return `domain` in lower case and ASCII, without a final dot. Raises `NapError` if it is not valid."""
    wildcard, rest = ("*.", domain[2:]) if domain.startswith("*.") else ("", domain)
    try:
        return wildcard + _normal(rest, len(wildcard))
    except ValueError as fault:
        raise NapError(f"{domain[:80]!a} is not a domain: {fault}", advice=_HOW) from fault


def covers(names: Collection[str], name: str) -> bool:
    """Return whether `name` is one of these, or matches a wildcard among them."""
    return name in names or f"*.{name.partition('.')[2]}" in names


def domains_of(etcd: Reader, places: EtcdSettings, app: str) -> list[str]:
    """Return the domains that were added to the app."""
    prefix = f"{places.domains}/"
    return [entry.key.removeprefix(prefix) for entry in etcd.below(prefix).entries if _holder(entry) == app]


def names_of(etcd: Reader, settings: Settings, app: str) -> list[str]:
    """Return all domains of the app, the one from nap first."""
    own = [own_name(app, settings.router)] if has_router(settings) else []
    return own + domains_of(etcd, settings.etcd, app)


def token_of(etcd: "Etcd", places: EtcdSettings, app: str) -> str:
    """Return the token for the DNS record of the app; created at the first call.

    It is random and removed with the app: a record proves nothing for a later app of the same name.
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
    """Add these domains to the app, which may have `most`. Raises `NapError`, and adds none, if one is not allowed.

    No domain may be another app's, nor above or below one, unless `user` owns that app too, or is None: the operator.
    """
    _require_few(domains)
    keys = [f"{places.domains}/{domain}" for domain in domains]
    while True:
        access, last = etcd.get(places.access_of(app)), etcd.get(places.domains)
        if access is None:
            raise no_such(app)
        unchanged = {access.key: access.revision, places.domains: last.revision if last else 0}
        entries = {entry.key: entry for entry in etcd.below(f"{places.domains}/").entries}
        holders = {key.removeprefix(f"{places.domains}/"): _holder(entry) for key, entry in entries.items()}
        has = {domain for domain, holder in holders.items() if holder == app}
        if len(has.union(domains)) > max(most, len(has)):
            raise NapError(
                f"{app} has {len(has)} domains; the limit is {most} (router.max_domains)",
                advice=f"Remove some: domains:remove {app} …, or ask the operator to raise the limit.",
            )
        for key, domain in zip(keys, domains, strict=True):
            unchanged[key] = entries[key].revision if key in entries else 0
            holder = holders.get(domain, "")
            if holder and holder != app:
                access_to = places.access_of(holder)
                if etcd.get(access_to):
                    advice = "The owner of that app can remove it: domains:remove"
                    raise NapError(f"{domain} belongs to another app", advice=advice)
                unchanged[access_to] = 0  # an app that is gone has no domains
        if user is not None:
            _require_apart(etcd, places, app, domains, holders, user)
        if etcd.write({key: {"app": app} for key in [places.domains, *keys]}, unchanged=unchanged):
            return


def _require_apart(
    etcd: "Etcd", places: EtcdSettings, app: str, domains: Sequence[str], holders: Mapping[str, str], user: str
) -> None:
    """Raise `NapError` if a domain is above or below one of an app that `user` does not own."""
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
                advice="The owner of that app can remove it (domains:remove), or the operator can add yours.",
            )


def _in_line(domains: Iterable[str], others: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each pair of these and those domains of which one is above or below the other; a wildcard is below its own
    base."""
    at = {base_of(domain): domain for domain in domains}
    above = {each: domain for base, domain in at.items() for each in _line(base)}
    for other in others:
        base = base_of(other)
        found = above.get(base) or next((at[each] for each in _line(base) if each in at), None)
        if found:
            yield found, other


def _line(domain: str) -> Iterator[str]:
    """Yield the domain, and each domain above it."""
    while domain:
        yield domain
        domain = domain.partition(".")[2]


def remove_domains(etcd: "Etcd", places: EtcdSettings, app: str, domains: Sequence[str]) -> None:
    """Remove these domains from the app. Raises `NapError`, and removes none, if the app lacks one."""
    _require_few(domains)
    while True:
        entries = {entry.key: entry for entry in etcd.below(f"{places.domains}/").entries if _holder(entry) == app}
        keys = [f"{places.domains}/{domain}" for domain in domains]
        for key, domain in zip(keys, domains, strict=True):
            if key not in entries:
                raise NapError(f"{app} has no domain {domain}", advice=f"To list its domains: domains {app}")
        if etcd.write(dict.fromkeys(keys), unchanged={key: entries[key].revision for key in keys}):
            return


def give_up_all(etcd: "Etcd", places: EtcdSettings, app: str, heir: str = "") -> None:
    """Remove all domains and the certificate of the app; with an `heir`, move them to that app."""
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
    """Return the app of a domain; empty if the entry is not valid."""
    try:
        return msgspec.convert(entry.value, _Domain).app
    except msgspec.ValidationError:
        return ""


def _require_few(domains: Sequence[str]) -> None:
    if len(domains) > MOST:
        raise NapError(f"got {len(domains)} domains; one command takes at most {MOST}")


def _normal(domain: str, before: int) -> str:
    """Return the normalised domain; `before` is the length of its wildcard. Raises `ValueError` with the reason."""
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
        raise ValueError("a * can only be the whole first label")
    if not all(labels):
        raise ValueError("one of its labels is empty")
    if len(labels) == 1:
        raise ValueError("it needs at least two labels" + (" after the *" if before else ""))
    if len(name) + before > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters")
    if not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("a label has up to 63 letters, digits and, between them, dashes")
    if labels[-1].isdecimal():
        raise ValueError("it is an address")  # to browsers, even if it is none
    return name


def _in_ascii(domain: str) -> str:
    """Return an internationalised domain in ASCII. Raises `ValueError` if it is not valid."""
    import idna  # a hundredth of a second, for those few

    try:
        return idna.encode(domain, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError("it has letters, or a mix of writing directions, that domains cannot have") from error


def _is_address(domain: str) -> bool:
    try:
        ipaddress.ip_address(domain.strip("[]"))
    except ValueError:
        return False
    return True
