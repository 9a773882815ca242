"""Which client certificate is worth what, and which header of a proxy in front tells of one: pure."""

from __future__ import annotations

import datetime as dt
import time
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from proxycore import client_certificates
from proxycore.client_certificates import ClientCertificates
from proxycore.identities import Identity
from proxycore.xfcc import certificate_of
from tests.proxycore.certificates import Authority, Pair

AUTHORITY = Authority()
ALICE = AUTHORITY.client("alice", "devs", "ops")


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def trusting(*authorities: Authority, ttl: float = 10.0, clock: Clock | None = None) -> ClientCertificates:
    found = ClientCertificates(ttl=ttl, clock=clock or time.time)
    found.trust("".join(one.pem for one in authorities or (AUTHORITY,)).encode())
    return found


def test_the_common_name_is_the_user_and_each_organisation_a_group() -> None:
    found = trusting().identify(ALICE.der)

    assert found == Identity(user="alice", groups=("devs", "ops", "system:authenticated"))


def test_a_certificate_for_any_use_or_without_uses_is_taken_as_kube_apiserver_takes_it() -> None:
    for uses in ((), (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,), (ExtendedKeyUsageOID.CLIENT_AUTH,)):
        assert trusting().identify(AUTHORITY.client(uses=uses).der) is not None


UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
REFUSED = {
    "expired": AUTHORITY.client(begins=-2, ends=-1),
    "not yet": AUTHORITY.client(begins=1, ends=2),
    "for servers": AUTHORITY.client(uses=(ExtendedKeyUsageOID.SERVER_AUTH,)),
    "for code": AUTHORITY.client(uses=(ExtendedKeyUsageOID.CODE_SIGNING,)),
    "of another authority": Authority().client("alice"),
    "of another authority of the same name": Authority("an authority").client("alice"),
    "signed by a client": Pair(ALICE.certificate, ALICE.key),  # replaced below
    "without a name": AUTHORITY.client("", "devs"),
    "with an empty group": AUTHORITY.client("alice", ""),
    "with two names": AUTHORITY.client("alice", users=("bob",)),
    "with an empty looking name": AUTHORITY.client(" "),
    "with a name that gets trimmed": AUTHORITY.client("alice "),
    "with a line in its name": AUTHORITY.client("alice\r\nImpersonate-Group: system:masters"),
    "with a line in its group": AUTHORITY.client("alice", "devs\nImpersonate-User: root"),
    "of an account": AUTHORITY.client("system:serviceaccount:oil-system:gitops-reconciler"),
    "of an authority": AUTHORITY.client(extension=x509.BasicConstraints(ca=True, path_length=None)),
    "with a critical extension that nobody knows": AUTHORITY.client(extension=UNKNOWN),
}


def signed_by_a_client() -> Pair:
    impostor = Authority("alice")
    impostor.key = ALICE.key
    impostor.name = ALICE.certificate.subject
    return impostor.client("root", "system:masters")


REFUSED["signed by a client"] = signed_by_a_client()


@pytest.mark.parametrize("pair", REFUSED.values(), ids=REFUSED)
def test_a_certificate_that_is_not_good_names_nobody(pair: Pair) -> None:
    assert trusting().identify(pair.der) is None


def test_a_client_whose_certificate_is_in_the_bundle_signs_for_nobody() -> None:
    certificates = ClientCertificates(ttl=10)
    certificates.trust((AUTHORITY.pem + ALICE.pem).encode())

    assert certificates.identify(signed_by_a_client().der) is None


def key_usage(*, signs: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    names = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=True, key_cert_sign=signs, **names)


NO_SIGNER = {
    "a client that says so": Authority(ca=False),
    "an authority whose key is not for certificates": Authority(extension=key_usage(signs=False)),
    "an authority for servers alone": Authority(extension=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
}


@pytest.mark.parametrize("signer", NO_SIGNER.values(), ids=NO_SIGNER)
def test_what_is_not_made_for_it_signs_for_nobody_though_it_is_in_the_bundle(signer: Authority) -> None:
    assert trusting(signer).identify(signer.client("alice").der) is None


def test_an_authority_that_says_what_its_key_is_for_signs() -> None:
    for extension in (key_usage(signs=True), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])):
        signer = Authority(extension=extension)
        assert trusting(signer).identify(signer.client("alice").der) is not None


def test_a_certificate_that_says_that_it_is_no_authority_is_a_client() -> None:
    pair = AUTHORITY.client(extension=x509.BasicConstraints(ca=False, path_length=None))

    assert trusting().identify(pair.der) is not None


def test_a_client_whose_certificate_is_in_the_bundle_is_not_proven_by_that() -> None:
    certificates = ClientCertificates(ttl=10)
    certificates.trust(ALICE.pem.encode())

    assert certificates.identify(ALICE.der) is None


def test_an_authoritys_own_certificate_is_no_client() -> None:
    assert trusting().identify(AUTHORITY.certificate.public_bytes(Encoding.DER)) is None


def test_an_authority_whose_time_is_over_signs_for_nobody() -> None:
    old = Authority(ends=-1)

    assert trusting(old).identify(old.client("alice").der) is None


def test_nothing_is_believed_before_there_is_a_bundle_and_a_bundle_without_certificates_is_none() -> None:
    certificates = ClientCertificates(ttl=10)
    assert certificates.identify(ALICE.der) is None

    with pytest.raises(ValueError, match="PEM"):
        certificates.trust(b"nothing")

    assert certificates.identify(ALICE.der) is None
    certificates.trust(AUTHORITY.pem.encode())
    assert certificates.identify(ALICE.der) is not None


def test_a_certificate_is_worth_nothing_from_its_end_on_also_where_it_is_remembered() -> None:
    clock = Clock()
    certificates = trusting(clock=clock, ttl=10.0)
    ends = ALICE.certificate.not_valid_after_utc
    clock.now = (ends - dt.timedelta(seconds=2)).timestamp()
    assert certificates.identify(ALICE.der) is not None

    clock.now += 3  # within the ten seconds

    assert certificates.identify(ALICE.der) is None


def test_a_certificate_is_good_from_its_first_moment_to_its_last_and_not_the_part_of_a_second_after() -> None:
    begins, ends = (ALICE.certificate.not_valid_before_utc, ALICE.certificate.not_valid_after_utc)

    def is_good(now: float) -> bool:
        clock = Clock()
        clock.now = now
        return trusting(clock=clock).identify(ALICE.der) is not None

    assert [is_good(begins.timestamp() + seconds) for seconds in (-0.5, 0)] == [False, True]
    assert [is_good(ends.timestamp() + seconds) for seconds in (0, 0.5)] == [True, False]


def test_time_is_the_same_wherever_the_proxy_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        found = trusting().identify(ALICE.der)
    time.tzset()

    assert found is not None


@pytest.mark.parametrize("pair", [ALICE, REFUSED["for servers"]], ids=["good", "refused"])
def test_a_certificate_is_judged_once_in_ten_seconds(pair: Pair, judged: list[bytes]) -> None:
    clock = Clock()
    certificates = trusting(clock=clock, ttl=10.0)

    for seconds in (0, 9, 1, 9):  # at 0, 9, 10 and 19 seconds
        clock.now += seconds
        certificates.identify(pair.der)

    assert judged == [pair.der, pair.der]


def test_of_more_certificates_than_are_remembered_those_are_forgotten_that_were_judged_first(
    judged: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_certificates, "MAX_REMEMBERED", 2)
    clock = Clock()
    certificates = trusting(clock=clock, ttl=10.0)
    first, second, third = (AUTHORITY.client(name).der for name in ("first", "second", "third"))

    certificates.identify(first)
    clock.now += 1
    certificates.identify(second)
    clock.now += 9.5
    certificates.identify(first)  # again, so that the second is now the oldest
    certificates.identify(third)
    judged.clear()
    for one in (first, third, second):
        certificates.identify(one)

    assert judged == [second]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The certificates that were read, in order."""
    found: list[bytes] = []
    load = x509.load_der_x509_certificate

    def noted(der: bytes) -> x509.Certificate:
        found.append(der)
        return load(der)

    monkeypatch.setattr(x509, "load_der_x509_certificate", noted)
    return found


def test_another_bundle_counts_at_once() -> None:
    certificates = trusting()
    assert certificates.identify(ALICE.der) is not None

    certificates.trust(Authority("another").pem.encode())

    assert certificates.identify(ALICE.der) is None


def test_several_authorities_may_be_trusted_and_an_authority_that_another_signed_is_one_if_it_is_in_the_bundle() -> (
    None
):
    middle = Authority("middle", AUTHORITY)
    carol = middle.client("carol")

    assert trusting(Authority("first"), AUTHORITY).identify(ALICE.der) is not None
    assert trusting(AUTHORITY).identify(carol.der) is None
    assert trusting(AUTHORITY, middle).identify(carol.der) == Identity(user="carol", groups=("system:authenticated",))


@given(st.binary(max_size=200) | st.integers(0, len(ALICE.der)).map(lambda size: ALICE.der[:size]))
def test_other_bytes_name_nobody(der: bytes) -> None:
    assert trusting().identify(der) is None or der == ALICE.der


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("value", [0x00, 0x05, 0x5D, 0xFF])
def test_a_certificate_with_any_one_byte_changed_names_nobody(value: int) -> None:
    judge = trusting()
    for place, byte in enumerate(ALICE.der):
        if byte != value:
            assert judge.identify(ALICE.der[:place] + bytes([value]) + ALICE.der[place + 1 :]) is None


def test_a_signature_of_which_bits_are_said_to_be_unused_is_none() -> None:
    # given a certificate whose signature ends with bits that are zero, which is when DER allows to say so
    pair = next(one for one in map(AUTHORITY.client, ["alice"] * 10_000) if not one.certificate.signature[-1] & 0b11)
    place = len(pair.der) - len(pair.certificate.signature) - 1
    assert pair.der[place] == 0

    changed = pair.der[:place] + bytes([2]) + pair.der[place + 1 :]

    assert trusting().identify(pair.der) is not None
    assert trusting().identify(changed) is None


# The header.


def test_the_header_in_envoys_syntax_tells_the_certificate() -> None:
    quoted = ALICE.xfcc(';Subject="CN=alice,O=\\"devs\\"";URI=spiffe://a/b;URI=spiffe://a/c;DNS=')
    bare = f"cert={quote(ALICE.pem, safe='')};By=spiffe://proxy"

    assert certificate_of([quoted]) == ALICE.der
    assert certificate_of([bare]) == ALICE.der
    assert certificate_of([f'Cert="{quote(ALICE.pem, safe="")}"']) == ALICE.der
    assert certificate_of([ALICE.xfcc().replace(ALICE.hash, ALICE.hash.upper())]) == ALICE.der


CERT = f'Cert="{quote(ALICE.pem, safe="")}"'
BOB = AUTHORITY.client("bob")
ODD = {
    "no header": [],
    "empty": [""],
    "two headers": [ALICE.xfcc(), ALICE.xfcc()],
    "two entries": [f"{ALICE.xfcc()},{BOB.xfcc()}"],
    "an empty second entry": [f"{ALICE.xfcc()},"],
    "no certificate": [f'Hash={ALICE.hash};Subject="CN=alice"'],
    "an empty certificate": ['Cert=""'],
    "another hash": [ALICE.xfcc().replace(ALICE.hash, BOB.hash)],
    "an empty hash": [f"Hash=;{CERT}"],
    "two hashes": [f"Hash={ALICE.hash};Hash={ALICE.hash};{CERT}"],
    "two certificates": [f"{CERT};{CERT}"],
    "two certificates in one": [f'Cert="{quote(ALICE.pem + BOB.pem, safe="")}"'],
    "a chain alone": [f'Chain="{quote(ALICE.pem, safe="")}"'],
    "an open quote": [ALICE.xfcc()[:-1]],
    "words after a quote": [ALICE.xfcc() + "x"],
    "a key without a value": [f"{CERT};Subject"],
    "broken escapes": ['Cert="%zz%"'],
    "escapes that are no UTF-8": ['Cert="%ce%1a"'],
    "no PEM": [f'Cert="{quote("-----BEGIN CERTIFICATE-----nothing", safe="")}"'],
    "outside ASCII": ['Cert="é"'],
}


@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
def test_a_header_that_is_not_exactly_one_good_entry_tells_nothing(values: list[str]) -> None:
    assert certificate_of(values) is None


@given(st.text(alphabet='ab=;,"\\% \t', max_size=30))
def test_no_text_breaks_the_reading(text: str) -> None:
    assert certificate_of([text]) is None
    assert certificate_of([f"Cert={text}"]) is None
