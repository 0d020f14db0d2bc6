"""Ownership of domains: which names no app can have, and which DNS record proves the others."""

import time
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from nap_receiver.core.errors import NapError

if TYPE_CHECKING:  # a twentieth of a second, for those few who add domains
    from dns.resolver import Resolver
    from publicsuffixlist import PublicSuffixList

RESERVED = (
    *("example", "example.com", "example.net", "example.org", "invalid", "localhost", "test"),  # RFC 2606, RFC 6761
    *("alt", "home.arpa", "internal", "local", "onion"),  # RFC 9476, RFC 8375, ICANN 2024-07-29, RFC 6762, RFC 7686
)
"""The public DNS will never have these, nor what is below them."""

LONGEST = 253
"""Characters of a domain (RFC 1035, section 2.3.4), without the root."""

_LABEL = "_nap"
"""What is asked of the DNS is in front of the domain, so that it is nobody's web address."""


def base_of(domain: str) -> str:
    """Return the domain; of a wildcard, the domain after `*.`."""
    return domain.removeprefix("*.")


def is_reserved(domain: str) -> bool:
    """Return whether the domain is reserved, so that the public DNS never has it and nobody can own it."""
    return any(f".{base_of(domain)}".endswith(f".{each}") for each in RESERVED)


def is_public_suffix(domain: str) -> bool:
    """Return whether names of different owners are below this one, such as `co.uk` and `github.io`
    (publicsuffix.org)."""
    return _list().privatesuffix(base_of(domain)) is None


@lru_cache(10_000)
def registered_of(domain: str) -> str:
    """Return the registered domain of this one: `example.co.uk`."""
    return _list().privatesuffix(base_of(domain)) or base_of(domain)


def proofs_of(domain: str) -> list[str]:
    """Return the names of the DNS records that can prove ownership: of the domain, or of the registered domain."""
    return [f"{_LABEL}.{each}" for each in dict.fromkeys((base_of(domain), registered_of(domain)))]


def require_proof(
    app: str, domains: Sequence[str], token: str, seconds: float, resolver: "Resolver | None" = None
) -> None:
    """Raise `NapError` unless the DNS has, for each of these domains, a TXT record with this `token`.

    `seconds` is the timeout for all of them; the default `resolver` is the machine's.
    """
    asked: dict[str, set[str]] = {}
    deadline = time.monotonic() + seconds
    missing = []
    for domain in domains:
        for name in proofs_of(domain):
            if name not in asked:
                asked[name] = set(_texts(name, deadline - time.monotonic(), resolver))
            if _record(token) in asked[name]:
                break
        else:
            missing.append(domain)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise NapError(
            f"no DNS record proves that {app} may use {missing[0]}{more}",
            advice=f'Add this record, then try again: {proofs_of(missing[0])[0]}. TXT "{_record(token)}"',
        )


def _record(token: str) -> str:
    return f"nap={token}"


def _texts(name: str, seconds: float, resolver: "Resolver | None") -> Iterable[str]:
    """Return the TXT records of `name`. Raises `NapError` if the DNS does not answer."""
    import dns.exception
    import dns.resolver

    if len(name) > LONGEST:
        return []
    try:
        if seconds <= 0:
            raise dns.exception.Timeout
        found = (resolver or dns.resolver.Resolver()).resolve(name, "TXT", lifetime=seconds, search=False)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.resolver.YXDOMAIN):
        return []
    except dns.exception.DNSException as error:
        raise NapError(
            f"the DNS does not answer for {name[:80]} ({type(error).__name__})",
            advice="Try again. If it fails again, check that the name servers of the domain answer: dig TXT …",
        ) from error
    return [b"".join(record.strings).decode("ascii", "replace") for record in found]


@cache
def _list() -> "PublicSuffixList":
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()
