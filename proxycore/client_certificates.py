"""From a client certificate to an identity, as kube-apiserver reads one: CN is the user, each O a group.

TLS only proves that a client holds the key. Whether the certificate is good is decided here, for each request and by
the authorities of now: so one that expires, or whose authority is taken away, is worth nothing on a connection that is
still open, and a certificate that another proxy forwards is judged by the same rule.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from eventcore.clock import KUBE
from proxycore.identities import SERVICE_ACCOUNT_PREFIX, Identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.x509.verification import Policy

MAX_REMEMBERED: Final = 2_000
AUTHENTICATED: Final = "system:authenticated"
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What reading a certificate raises that is none, or an odd one."""
_CLIENT_USES: Final = frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})


class _Remembered(msgspec.Struct, frozen=True):
    identity: Identity | None
    until: float


class ClientCertificates:
    """Identifies by certificate. Nothing is believed before `trust`; an answer is remembered ``ttl`` seconds."""

    def __init__(self, *, ttl: float, clock: Callable[[], float] = KUBE.time) -> None:
        self._ttl = ttl
        self._clock = clock
        self._policy: PolicyBuilder | None = None
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()

    def trust(self, bundle: bytes) -> None:
        """Believe what these authorities (PEM) signed, and nothing else; ValueError when there is none in it."""
        authorities = x509.load_pem_x509_certificates(bundle)
        self._policy = (
            PolicyBuilder().store(Store(authorities)).extension_policies(ca_policy=_OF_CA, ee_policy=_OF_CLIENT)
        )
        self._remembered.clear()

    def identify(self, der: bytes) -> Identity | None:
        """Return whom a certificate (DER) names; None when it is not signed, not for clients, or not of this time."""
        now = self._clock()
        digest = hashlib.sha256(der).digest()
        found = self._remembered.get(digest)
        if found is None or found.until <= now:
            found = self._judge(der, now)
            self._remembered[digest] = found
            self._remembered.move_to_end(digest)
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return found.identity

    def _judge(self, der: bytes, now: float) -> _Remembered:
        refused = _Remembered(None, now + self._ttl)
        if self._policy is None:
            return _Remembered(None, now)
        try:
            certificate = x509.load_der_x509_certificate(der)
            at = dt.datetime.fromtimestamp(now, dt.UTC)
            chain = self._policy.time(at).build_client_verifier().verify(certificate, []).chain
            identity = _named(certificate)
        except (*UNREADABLE, VerificationError):
            # As much is said to nobody: the client learns 401, as from kube-apiserver.
            return refused
        ends = min(one.not_valid_after_utc.timestamp() for one in chain)
        # The signature ends a certificate, in whole bytes: bits that are said to be unused would make two of one.
        whole = der.endswith(b"\x00" + certificate.signature)
        # What stands in the bundle itself is no client's: a chain has at least two links.
        # The verifier knows whole seconds alone.
        if len(chain) < len(("client", "authority")) or not (whole and now <= ends):
            return refused
        return _Remembered(identity, min(now + self._ttl, ends))


def _named(certificate: x509.Certificate) -> Identity | None:
    subject = certificate.subject
    users = [str(one.value) for one in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    groups = [str(one.value) for one in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    # What is odd in a header would be somebody else upstream: no control characters, no blanks that get trimmed.
    if len(users) != 1 or not all(text and text == text.strip() and text.isprintable() for text in (*users, *groups)):
        return None
    # Impersonated, such a name would gain groups that the certificate does not give.
    if users[0].startswith(SERVICE_ACCOUNT_PREFIX):
        return None
    return Identity(user=users[0], groups=tuple(dict.fromkeys((*groups, AUTHENTICATED))))


def _uses(_: Policy, __: x509.Certificate, extension: x509.ExtendedKeyUsage | None) -> None:
    """Refuse a certificate that is for something else; one that names no use is for any, as in kube-apiserver."""
    if extension is not None and _CLIENT_USES.isdisjoint(extension):
        raise ValueError("not for clients")


def _signs_certificates(_: Policy, __: x509.Certificate, extension: x509.KeyUsage | None) -> None:
    if extension is not None and not extension.key_cert_sign:
        raise ValueError("not for signing certificates")


def _is_no_authority(_: Policy, __: x509.Certificate, extension: x509.BasicConstraints | None) -> None:
    if extension is not None and extension.ca:
        raise ValueError("an authority, no client")


# The rules of web servers ask for names and identifiers that clusters' certificates do not have. That a signer says of
# itself that it is an authority, the verifier asks for always.
_OF_CA: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _uses)
)
_OF_CLIENT: Final = (
    ExtensionPolicy.permit_all()
    .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_no_authority)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _uses)
)
