"""The cluster's own authority: certificates for servers and clients, and the key that signs ServiceAccount tokens.

One authority signs everything, as ``kubeadm`` clusters do in the small: the API's serving certificate, client
certificates (common name is the user, organisations are the groups) and serving certificates for what stands in front
of the API. With a folder all of it survives a restart; without one it lives as long as the process.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import os
import ssl
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tether.devcluster.contracts import UserInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LIFE = dt.timedelta(days=365)
_BACKDATED = dt.timedelta(minutes=5)  # a client whose clock is a little behind still accepts us
DEFAULT_HOSTS = (
    "127.0.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


class ServiceAccountKeys:
    """The RSA key pair of ServiceAccount tokens; ``key_id`` is the hash of the public key, as ``kid`` of the tokens."""

    def __init__(self, private_key: rsa.RSAPrivateKey) -> None:
        self.private_key = private_key
        self.public_key = private_key.public_key()
        der = self.public_key.public_bytes(
            serialization.Encoding.DER,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
        self.key_id = hashlib.sha256(der).hexdigest()[:32]


class ClusterPki:
    """Signs and checks certificates; made by ``load_or_create``. Every PEM that leaves is a str."""

    def __init__(
        self,
        ca_certificate: x509.Certificate,
        ca_key: ec.EllipticCurvePrivateKey,
        service_account_key: rsa.RSAPrivateKey,
    ) -> None:
        self._ca = ca_certificate
        self._ca_key = ca_key
        self.service_account_keys = ServiceAccountKeys(service_account_key)

    @classmethod
    def load_or_create(cls, folder: Path | None) -> Self:
        """Return the authority kept in ``folder`` (made on first use, files 0600), or one in memory for None."""
        if folder is None:
            ca_key = ec.generate_private_key(ec.SECP256R1())
            return cls(_new_ca(ca_key), ca_key, _new_rsa_key())
        folder.mkdir(parents=True, exist_ok=True)
        ca_path, ca_key_path, sa_path = folder / "ca.crt", folder / "ca.key", folder / "sa.key"
        if not (ca_path.exists() and ca_key_path.exists()):
            ca_key = ec.generate_private_key(ec.SECP256R1())
            _write_private(ca_key_path, _key_pem(ca_key))
            _write_private(ca_path, _certificate_pem(_new_ca(ca_key)))
        if not sa_path.exists():
            _write_private(sa_path, _key_pem(_new_rsa_key()))
        return cls(
            x509.load_pem_x509_certificate(ca_path.read_bytes()),
            cast("ec.EllipticCurvePrivateKey", _load_key(ca_key_path)),
            cast("rsa.RSAPrivateKey", _load_key(sa_path)),
        )

    @property
    def ca_pem(self) -> str:
        """The authority's certificate."""
        return _certificate_pem(self._ca)

    def issue_serving(self, hosts: Sequence[str]) -> tuple[str, str]:
        """Return (certificate PEM, key PEM) for a server reached by these DNS names and IP addresses."""
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        return self._issue(subject, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client_certificate(self, user: str, groups: Iterable[str] = ()) -> tuple[str, str]:
        """Return (certificate PEM, key PEM) that authenticate as ``user`` in ``groups``."""
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, user),
                *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
            ],
        )
        return self._issue(subject, ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def server_ssl_context(self, hosts: Sequence[str] = DEFAULT_HOSTS) -> ssl.SSLContext:
        """Return a context with a fresh serving certificate that asks for a client certificate and needs none."""
        certificate, key = self.issue_serving(tuple(dict.fromkeys((*hosts, *DEFAULT_HOSTS))))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=self.ca_pem)
        context.verify_mode = ssl.CERT_OPTIONAL
        with tempfile.TemporaryDirectory() as folder:  # OpenSSL reads a chain from files only
            path = Path(folder) / "serving.pem"
            _write_private(path, certificate + key)
            context.load_cert_chain(path)
        return context

    def user_of_certificate(self, der: bytes) -> UserInfo | None:
        """Return who a client certificate names; None when it is not ours, not for clients, or out of its time."""
        certificate = _issued(self._ca, der)
        if certificate is None:
            return None
        now = dt.datetime.now(dt.UTC)
        in_time = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
        names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if not in_time or not names:
            return None
        groups = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        credential = f"X509SHA256={hashlib.sha256(der).hexdigest()}"
        return UserInfo(
            username=names[0],
            groups=tuple(str(group.value) for group in groups),
            extra={"authentication.kubernetes.io/credential-id": (credential,)},
        )

    def _issue(
        self,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None,
    ) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, self._ca.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key()),
                critical=False,
            )
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return _certificate_pem(builder.sign(self._ca_key, hashes.SHA256())), _key_pem(key)


def _new_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _new_ca(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tether-devcluster-ca")])
    return (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + LIFE)
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


@lru_cache(maxsize=256)  # each request of a client brings the same certificate
def _issued(ca: x509.Certificate, der: bytes) -> x509.Certificate | None:
    """Return the certificate if it is for clients and the authority issued it."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(ca)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return None
    return certificate if ExtendedKeyUsageOID.CLIENT_AUTH in usage else None


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _load_key(path: Path) -> object:
    return serialization.load_pem_private_key(path.read_bytes(), password=None)


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
