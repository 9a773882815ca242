"""Client certificates of every kind, good and bad, for the tests of the ways to tell a caller."""

from __future__ import annotations

import datetime as dt
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

CLIENTS = (ExtendedKeyUsageOID.CLIENT_AUTH,)


class Authority:
    """A certificate authority in memory."""

    def __init__(
        self,
        name: str = "an authority",
        issuer: Authority | None = None,
        *,
        ends: float = 24,
        ca: bool = True,
        extension: x509.ExtensionType | None = None,
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self.name, (issuer or self).name, self.key.public_key(), -3, ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
        self.certificate = builder.sign((issuer or self).key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def client(
        self,
        user: str = "alice",
        *groups: str,
        uses: tuple[ObjectIdentifier, ...] = CLIENTS,
        begins: float = -1,
        ends: float = 1,
        users: tuple[str, ...] = (),
        extension: x509.ExtensionType | None = None,
    ) -> Pair:
        """Return a certificate with its key; ``begins`` and ``ends`` in hours from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.COMMON_NAME, one) for one in (user, *users) if one]
        names += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        builder = _builder(x509.Name(names), self.name, key.public_key(), begins, ends)
        if uses:
            builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
        return Pair(builder.sign(self.key, hashes.SHA256()), key)


class Pair:
    """A certificate and its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def both(self) -> str:
        """Certificate and key, as a file for a client."""
        form = serialization.PrivateFormat.PKCS8
        key = self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return self.pem + key.decode()

    @property
    def hash(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def xfcc(self, more: str = "") -> str:
        """Return the header of a proxy in front that saw this certificate."""
        return f'Hash={self.hash};Cert="{quote(self.pem, safe="")}"{more}'


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: float, ends: float
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(hours=begins))
        .not_valid_after(now + dt.timedelta(hours=ends))
    )
