"""Names that apps answer to on the web: one of nap's own each, and those that their owners bring.

Below `<prefix>/`:
    domains/<domain>       `{"app": …}`: whose it is; whoever writes it first has it
    certificates/<app>     `{"chain": PEM, "key": PEM}`: what its domains are served with, where its owner brought it
"""

import re
from typing import TYPE_CHECKING

from nap_receiver.errors import NapError
from nap_receiver.settings import EtcdSettings, RouterSettings, Settings

if TYPE_CHECKING:  # etcd's library is for those who call it
    from nap_receiver.etcd import Etcd

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)+{_LABEL}")  # RFC 1123, section 2.1; a wildcard is all of a first label
_LONGEST = 253  # RFC 1035, section 2.3.4, without the root


def own_name(app: str, router: RouterSettings) -> str:
    """The name that every app has: `hello.localhost`."""
    return f"{app}.{router.domain}"


def url_of(app: str, settings: Settings) -> str:
    """Where the app is reached by that name; empty where there is no router."""
    router = settings.router
    if not router.domain or (settings.scheduler == "fleet" and router.domain == RouterSettings().domain):
        return ""  # a cluster has none but its operator's
    scheme, address, usual = ("https", router.https, 443) if router.https else ("http", router.http, 80)
    port = "" if address.port == usual else f":{address.port}"
    return f"{scheme}://{own_name(app, router)}{port}"


def checked_domain(domain: str, router: RouterSettings) -> str:
    """`domain` as it is looked up: in small letters, in ASCII. Raises `NapError` where no app can bring it."""
    import idna  # a hundredth of a second, for those few

    try:
        wildcard, rest = ("*.", domain[2:]) if domain.startswith("*.") else ("", domain)
        name = wildcard + idna.encode(rest.rstrip("."), uts46=True).decode()
    except idna.IDNAError as error:
        raise NapError(f"{domain[:80]!a} is no domain: {str(error)[:200]}") from error
    if len(name) > _LONGEST or not _DOMAIN.fullmatch(name):
        raise NapError(
            f"{domain[:80]!a} is no domain", advice="Write its name alone, such as www.example.org or *.example.org."
        )
    if re.fullmatch(r"[0-9.]+", name):
        raise NapError(f"{name} is an address, and no domain")
    if router.domain and f".{name}".endswith(f".{router.domain}"):
        raise NapError(f"{name} is nap's own to give: below {router.domain} every app has its name already")
    return name


def domains_of(etcd: "Etcd", places: EtcdSettings, app: str) -> list[str]:
    """The domains that were brought for the app."""
    return [domain for domain, whose in everybodys_domains(etcd, places).items() if whose == app]


def everybodys_domains(etcd: "Etcd", places: EtcdSettings) -> dict[str, str]:
    """The app of every domain that was brought."""
    prefix = f"{places.domains}/"
    return {entry.key.removeprefix(prefix): entry.value["app"] for entry in etcd.below(prefix).entries}


def add_domain(etcd: "Etcd", places: EtcdSettings, app: str, domain: str) -> None:
    """Have the app answer to the domain. Raises `NapError` where it is another app's."""
    key = f"{places.domains}/{domain}"
    while not etcd.create(key, {"app": app}):
        entry = etcd.get(key)
        if entry is None:  # given up in this very moment
            continue
        if entry.value["app"] != app:
            raise NapError(f"{domain} is another app's already", advice="Its owner can give it up: domains:remove")
        return


def remove_domain(etcd: "Etcd", places: EtcdSettings, app: str, domain: str) -> None:
    """Have the app answer to the domain no more. Raises `NapError` where it is not the app's."""
    key = f"{places.domains}/{domain}"
    entry = etcd.get(key)
    if entry is None or entry.value["app"] != app:
        raise NapError(f"{app} has no domain {domain}", advice=f"`domains {app}` lists those it has.")
    etcd.write({key: None}, unchanged={key: entry.revision})


def give_up_all(etcd: "Etcd", places: EtcdSettings, app: str, heir: str = "") -> None:
    """Leave the app without domains and certificate; with an `heir`, that is the app that has them from then on."""
    for domain in domains_of(etcd, places, app):
        etcd.write({f"{places.domains}/{domain}": {"app": heir} if heir else None})
    certificate = etcd.get(places.certificate_of(app))
    if certificate:
        if heir:
            etcd.put(places.certificate_of(heir), certificate.value)
        etcd.delete(places.certificate_of(app))
