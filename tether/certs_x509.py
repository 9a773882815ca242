"""Certificates for the proxy: an authority of its own and what it signs. Pure but for randomness and the clock given.

Keys are P-256, which every TLS client of Kubernetes knows. A key leaves only as PEM for a Secret.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
from typing import TYPE_CHECKING, cast

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Iterable

_BACKDATED = dt.timedelta(minutes=5)  # a client whose clock is a little behind still accepts us


class Pair(msgspec.Struct, frozen=True):
    """A certificate chain and its key, PEM each, as they stand in a Secret."""

    certificate: str
    key: str

    def __repr__(self) -> str:
        return "Pair(...)"  # never a key in a message

    @property
    def leaf(self) -> x509.Certificate:
        """The first certificate."""
        return x509.load_pem_x509_certificate(self.certificate.encode())

    @property
    def expires(self) -> dt.datetime:
        return self.leaf.not_valid_after_utc


def usable(certificate: str, key: str) -> Pair | None:
    """Return a pair whose key is that of its certificate, None for anything else."""
    try:
        pair = Pair(certificate, key)
        private = serialization.load_pem_private_key(key.encode(), password=None)
        return pair if private.public_key() == pair.leaf.public_key() else None
    except (ValueError, TypeError):  # TypeError: a key with a password
        return None


def new_authority(name: str, life: dt.timedelta, moment: dt.datetime) -> Pair:
    """Return a new authority; each has a subject of its own, so that two are never taken for one another."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"{name} {secrets.token_hex(4)}")
    certificate = (
        _builder(subject, subject, key.public_key(), moment, moment + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key))


def new_serving(authority: Pair, hosts: Iterable[str], life: dt.timedelta, moment: dt.datetime) -> Pair:
    """Return a serving certificate for these names; it never outlives the authority."""
    names = [_general_name(host) for host in hosts]
    issuer = authority.leaf
    signer = cast("ec.EllipticCurvePrivateKey", serialization.load_pem_private_key(authority.key.encode(), None))
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(moment + life, issuer.not_valid_after_utc)
    certificate = (
        _builder(_name(_common_name(names)), issuer.subject, key.public_key(), moment, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key))


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Tell whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def hosts_of(certificate: x509.Certificate) -> frozenset[str]:
    """Return the DNS names and IP addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(str(name.value) for name in names)


def is_host(text: str) -> bool:
    """Tell whether a text is an IP address, or a DNS name that may begin with a wildcard."""
    labels = text.removeprefix("*.").split(".")
    try:
        return bool(_general_name(text)) and (
            _is_address(text) or (len(text) <= 253 and all(0 < len(one) <= 63 and _is_label(one) for one in labels))  # noqa: PLR2004 - RFC 1035
        )
    except ValueError:
        return False


def certificates(text: str) -> list[str]:
    """Return the certificates of a PEM text, one PEM each; none of a text that is not PEM."""
    try:
        return [_pem(one) for one in x509.load_pem_x509_certificates(text.encode())]
    except ValueError:
        return []


def _is_label(text: str) -> bool:
    plain = text.replace("-", "")
    return plain.isascii() and plain.isalnum() and text == text.lower() and not text.startswith("-") and text[-1] != "-"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _common_name(names: list[x509.GeneralName]) -> str:
    longest = 64  # what X.509 allows of a common name
    return next((str(name.value) for name in names if len(str(name.value)) <= longest), "capsule-proxy")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    moment: dt.datetime,
    until: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
