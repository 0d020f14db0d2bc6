"""A certificate that an owner brings: read, and checked to belong together, before it is served."""

import datetime
from dataclasses import dataclass
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from nap_receiver.errors import NapError

_BEGIN_KEY, _BEGIN_CERTIFICATE = b"-----BEGIN", b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True)
class About:
    """What a certificate says."""

    names: list[str]
    issuer: str
    until: str
    """`2026-01-31T23:59:59Z`"""


def checked(content: bytes) -> tuple[str, str]:
    """Chain and key, each in PEM, out of one text that has both in any order.

    Raises `NapError` where a part is missing, or where they do not belong together, or are for another time.
    """
    blocks = [_BEGIN_KEY + block for block in content.split(_BEGIN_KEY)[1:]]
    keys = [block for block in blocks if b"PRIVATE KEY-----" in block.partition(b"\n")[0]]
    if len(keys) != 1:
        raise NapError(f"expected one private key in PEM, got {len(keys)}", advice=_HOW)
    chain = _certificates(b"".join(block for block in blocks if block.startswith(_BEGIN_CERTIFICATE)))
    try:
        key = serialization.load_pem_private_key(keys[0], password=None)
    except TypeError as error:
        raise NapError("the private key is locked with a passphrase", advice="Unlock it: openssl pkey") from error
    except ValueError as error:
        raise NapError("the private key cannot be read", advice=_HOW) from error
    if _public(key.public_key()) != _public(chain[0].public_key()):
        raise NapError("the private key is not that of the first certificate", advice=_HOW)
    for certificate, issuer in pairwise(chain):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise NapError(
                f"the chain is broken: {_name(certificate.subject)} was not issued by {_name(issuer.subject)}",
                advice=_HOW,
            ) from error
    now = datetime.datetime.now(datetime.UTC)
    if chain[0].not_valid_after_utc < now:
        raise NapError(f"the certificate ended {_stamp(chain[0].not_valid_after_utc)}", advice="Bring a newer one.")
    if not _names(chain[0]):
        raise NapError("the certificate names no domain (subjectAltName)", advice="Have one issued that does.")
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return "".join(each.public_bytes(pem).decode() for each in chain), secret.decode()


def about(chain: str) -> About:
    """What the first certificate of a chain in PEM says."""
    first = _certificates(chain.encode())[0]
    return About(_names(first), _name(first.issuer), _stamp(first.not_valid_after_utc))


_HOW = "Send the certificate, then the certificates of its chain, then the key: cat cert.pem chain.pem key.pem | …"


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise NapError("there is no certificate that can be read", advice=_HOW) from error


def _public(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string()


def _stamp(when: datetime.datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
