"""Certificates that owners add: read them, and check that certificate, chain and key belong together."""

import datetime
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.utils import CryptographyDeprecationWarning

from nap_receiver.core.channel import plain
from nap_receiver.core.errors import NapError

_LONGEST_CHAIN = 10
"""Certificates: which one issued which is tried for each two."""

_BEGIN, _BEGIN_CERTIFICATE = b"-----BEGIN", b"-----BEGIN CERTIFICATE-----"
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_RSA_BITS = range(2048, 8193)
_HOW = "Send the certificate, the certificates of its chain, and the key: cat cert.pem chain.pem key.pem | …"

# What Caddy could take for a name, be it only the subject's: a common name such as "Example Ltd" is none.
_LIKE_A_NAME = re.compile(r"[^\s.]+(\.[^\s.]+)+")


@dataclass(frozen=True)
class Brought:
    """A certificate with its chain and key, in PEM, and its names."""

    names: list[str]
    chain: str
    key: str


@dataclass(frozen=True)
class CertificateFacts:
    """The facts about a certificate."""

    names: list[str]
    issuer: str
    until: str
    """`2026-01-31T23:59:59Z`"""


def checked(content: bytes, most: int) -> Brought:
    """Parse one text of at most `most` bytes with the certificate, its chain and its key in any order.

    Raises `NapError` if a part is missing, if they do not belong together, or if they are not valid now.
    """
    if len(content) > most:
        raise NapError(
            f"the certificate, its chain and its key have more than {most} bytes (router.max_certificate)",
            advice="Send only these, or ask the operator to raise router.max_certificate.",
        )
    blocks = [_BEGIN + block for block in content.split(_BEGIN)[1:]]
    keys = [block for block in blocks if b"PRIVATE KEY-----" in block.partition(b"\n")[0]]
    if len(keys) != 1:
        raise NapError(f"expected one private key in PEM, got {len(keys) or 'none'}", advice=_HOW)
    key = _key(keys[0])
    certificates = [block for block in blocks if block.startswith(_BEGIN_CERTIFICATE)]
    if not certificates:
        raise NapError("expected a certificate in PEM, got none", advice=_HOW)
    if len(certificates) > _LONGEST_CHAIN:
        raise NapError(f"expected up to {_LONGEST_CHAIN} certificates, got {len(certificates)}", advice=_HOW)
    with _readable():
        chain = _chain(_certificates(b"".join(certificates)), _public(key.public_key()))
        _require_now(chain)
        names = _names(chain[0])
        common = [name.lower() for name in _common_names(chain[0].subject) if _LIKE_A_NAME.fullmatch(name)]
        _about(chain[0])  # is asked for later, and must be readable then
    if not names:
        raise NapError("the certificate has no domain in subjectAltName", advice="Request one with subjectAltName.")
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    text = "".join(each.public_bytes(pem).decode() for each in chain)
    return Brought(list(dict.fromkeys([*names, *common])), text, secret.decode())


def require_own(brought: Brought, app: str, own: Collection[str]) -> None:
    """Raise `NapError` if the certificate has a name that is not among the app's `own`.

    Caddy would show it to visitors of that name too, whoever owns it.
    """
    if foreign := [name for name in brought.names if name not in own]:
        name = plain(foreign[0])[:80]
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise NapError(
            f"the certificate is for {name}{more}, which is not a domain of {app}",
            advice=f"Add each name of the certificate first, also wildcards: domains:add {app} {name}",
        )


def about(chain: str) -> CertificateFacts:
    """Return the facts about the first certificate of a chain in PEM. Raises `NapError` if it cannot be read."""
    with _readable():
        return _about(_certificates(chain.encode())[0])


def _about(certificate: x509.Certificate) -> CertificateFacts:
    names = [plain(name) for name in _names(certificate)]
    return CertificateFacts(names, _name(certificate.issuer), _stamp(certificate.not_valid_after_utc))


def _key(pem: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        advice = "Decrypt it: openssl pkey -in key.pem -out decrypted.pem"
        raise NapError("the private key is encrypted with a passphrase", advice=advice) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise NapError("the private key cannot be read", advice=_HOW) from error
    # What Caddy does not take would keep it from taking anybody's routes.
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size in _RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES):
        return key
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    raise NapError(
        "nap does not support the type of this private key",
        advice=f"Use RSA of {_RSA_BITS[0]} to {_RSA_BITS[-1]} bits, ECDSA (P-256, P-384, P-521), or Ed25519.",
    )


def _certificates(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def _chain(certificates: list[x509.Certificate], key: bytes) -> list[x509.Certificate]:
    """Return the certificates in order: that of the key first, each followed by its issuer. Raises `NapError`."""
    left = list(dict.fromkeys(certificates))
    own = [each for each in left if _public(each.public_key()) == key]
    if not own:
        raise NapError("the private key does not belong to the certificate", advice=_HOW)
    chain = own[:1]
    left.remove(chain[0])
    while left:
        issuer = next((each for each in left if _is_issuer(each, chain[-1])), None)
        if issuer is None:
            raise NapError(
                f"the chain is broken: the issuer of {_name(chain[-1].subject)} is missing, "
                f"and {_name(left[0].subject)} does not belong to the chain",
                advice=_HOW,
            )
        chain.append(issuer)
        left.remove(issuer)
    return chain


def _is_issuer(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _require_now(chain: list[x509.Certificate]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for each in chain:
        what = "the certificate" if each is chain[0] else f"the chain certificate {_name(each.subject)}"
        if each.not_valid_after_utc < now:
            raise NapError(f"{what} expired {_stamp(each.not_valid_after_utc)}", advice="Add a newer one.")
        if each.not_valid_before_utc > now:
            begins = _stamp(each.not_valid_before_utc)
            raise NapError(f"{what} is not valid before {begins}", advice="Add it after that time.")


@contextmanager
def _readable() -> Iterator[None]:
    """Turn parse errors in the block into `NapError`; parts of a certificate are parsed when they are used."""
    try:
        with warnings.catch_warnings():  # such as of a serial number 0, which is no trouble
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            yield
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise NapError("a certificate cannot be read", advice=_HOW) from error


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)]


def _common_names(name: x509.Name) -> list[str]:
    return [str(each.value) for each in name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]


def _name(name: x509.Name) -> str:
    return plain((_common_names(name) or [name.rfc4514_string()])[0])[:80]


def _stamp(when: datetime.datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
