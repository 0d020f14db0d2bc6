"""Names that apps answer to on the web: one of nap's own each, and those that their owners bring.

Below `<prefix>/`:
    domains/<domain>       `{"app": …}`: whose it is; whoever writes it first has it
    certificates/<app>     `{"names": […], "chain": PEM, "key": PEM}`: what its owner brought for its names
"""

import ipaddress
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from nap_receiver.access import no_such
from nap_receiver.errors import NapError
from nap_receiver.kept import Entry, Reader
from nap_receiver.settings import EtcdSettings, RouterSettings, Settings

if TYPE_CHECKING:  # etcd's library is for those who call it
    from nap_receiver.etcd import Etcd

MOST = 40
"""Domains of one command: each is up to two conditions of a transaction, of which etcd takes 128."""

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, section 2.1
_LONGEST = 253  # RFC 1035, section 2.3.4, without the root
_HOW = "Write its name alone, such as www.example.org, or *.example.org for each name with one more label."


class _Domain(msgspec.Struct):
    app: str


def own_name(app: str, router: RouterSettings) -> str:
    """The name that every app has: `hello.localhost`."""
    return f"{app}.{router.domain}"


def has_router(settings: Settings) -> bool:
    """Whether apps have names; on a cluster only where its operator has set one up, below a domain that is told."""
    domain = settings.router.domain
    return bool(domain) and not (settings.scheduler == "fleet" and domain == RouterSettings().domain)


def url_of(app: str, settings: Settings) -> str:
    """Where the app is reached by that name; empty where there is no router."""
    router = settings.router
    if not has_router(settings):
        return ""
    scheme, address, usual = ("https", router.https, 443) if router.https else ("http", router.http, 80)
    port = "" if address.port == usual else f":{address.port}"
    return f"{scheme}://{own_name(app, router)}{port}"


def checked_domain(domain: str, router: RouterSettings) -> str:
    """`domain` as `normal` has it. Raises `NapError` where no app can bring it."""
    name = normal(domain)
    if is_own(name, router):
        raise NapError(
            f"{name} is nap's own to give", advice=f"Below {router.domain} every app has its one name already."
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


def add_domains(etcd: "Etcd", places: EtcdSettings, app: str, domains: Sequence[str]) -> None:
    """Have the app answer to these domains. Raises `NapError`, and adds none, where one is another app's."""
    _require_few(domains)
    while True:
        access = etcd.get(places.access_of(app))
        if access is None:
            raise no_such(app)
        unchanged = {access.key: access.revision}
        there = {entry.key: entry for entry in etcd.below(f"{places.domains}/").entries}
        keys = [f"{places.domains}/{domain}" for domain in domains]
        for key, domain in zip(keys, domains, strict=True):
            unchanged[key] = there[key].revision if key in there else 0
            holder = _holder(there[key]) if key in there else ""
            if holder and holder != app:
                access_to = places.access_of(holder)
                if etcd.get(access_to):
                    raise NapError(f"{domain} is another app's", advice="Its owner can give it up: domains:remove")
                unchanged[access_to] = 0  # an app that is gone has no domains
        if etcd.write({key: {"app": app} for key in keys}, unchanged=unchanged):
            return


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
    changes: dict[str, object] = {
        f"{places.domains}/{domain}": {"app": heir} if heir else None for domain in domains_of(etcd, places, app)
    }
    if certificate := etcd.get(places.certificate_of(app)):
        changes[certificate.key] = None
        if heir:
            changes[places.certificate_of(heir)] = certificate.value
    keys = list(changes)
    for start in range(0, len(keys), MOST):
        etcd.write({key: changes[key] for key in keys[start : start + MOST]})


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
    if len(domain) > 4 * _LONGEST:
        raise ValueError(f"it has more than {_LONGEST} characters")
    name = domain.lower() if domain.isascii() and "xn--" not in domain.lower() else _in_ascii(domain)
    name = name.removesuffix(".")
    labels = name.split(".")
    if "*" in name:
        raise ValueError("a * stands for all of the first label, and for no other")
    if not all(labels):
        raise ValueError("one of its labels is empty")
    if len(labels) == 1:
        raise ValueError("it has one label, and needs two" + (" besides the *" if before else ""))
    if len(name) + before > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST} characters")
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
