"""The cluster's authority: what it signs is trusted, what it did not sign is nobody."""

from __future__ import annotations

import asyncio
import ssl
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tether.devcluster.pki import ClusterPki

if TYPE_CHECKING:
    from pathlib import Path


def der_of(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


def test_a_client_certificate_names_its_user_and_groups() -> None:
    pki = ClusterPki.load_or_create(None)
    certificate, _ = pki.client_certificate("dana", ["cedar-devs", "system:masters"])

    user = pki.user_of_certificate(der_of(certificate))

    assert user is not None
    assert user.username == "dana"
    assert user.groups == ("cedar-devs", "system:masters")
    assert user.extra["authentication.kubernetes.io/credential-id"][0].startswith("X509SHA256=")


def test_a_certificate_of_another_authority_is_nobody() -> None:
    pki, stranger = ClusterPki.load_or_create(None), ClusterPki.load_or_create(None)
    certificate, _ = stranger.client_certificate("dana", ["system:masters"])

    assert pki.user_of_certificate(der_of(certificate)) is None


def test_a_serving_certificate_and_garbage_are_nobody() -> None:
    pki = ClusterPki.load_or_create(None)
    serving, _ = pki.issue_serving(["dana"])

    assert pki.user_of_certificate(der_of(serving)) is None
    assert pki.user_of_certificate(b"garbage") is None


def test_the_authority_survives_in_its_folder_readable_by_its_owner_alone(tmp_path: Path) -> None:
    first = ClusterPki.load_or_create(tmp_path / "pki")
    certificate, _ = first.client_certificate("dana")

    second = ClusterPki.load_or_create(tmp_path / "pki")

    assert second.ca_pem == first.ca_pem
    assert second.service_account_keys.key_id == first.service_account_keys.key_id
    assert second.user_of_certificate(der_of(certificate)) is not None
    files = list((tmp_path / "pki").iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_two_authorities_share_nothing() -> None:
    one, other = ClusterPki.load_or_create(None), ClusterPki.load_or_create(None)

    assert one.ca_pem != other.ca_pem
    assert one.service_account_keys.key_id != other.service_account_keys.key_id


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "kubernetes.default.svc"])
async def test_a_server_is_trusted_under_each_of_its_names_and_asks_for_no_certificate(host: str) -> None:
    pki = ClusterPki.load_or_create(None)
    client = ssl.create_default_context(cadata=pki.ca_pem)

    peer = await handshake(pki.server_ssl_context(["127.0.0.1"]), client, host)

    assert peer is None


async def test_a_server_sees_the_client_certificate_that_is_offered(tmp_path: Path) -> None:
    pki = ClusterPki.load_or_create(None)
    (tmp_path / "client.pem").write_text("".join(pki.client_certificate("dana")))
    client = ssl.create_default_context(cadata=pki.ca_pem)
    client.load_cert_chain(tmp_path / "client.pem")

    peer = await handshake(pki.server_ssl_context(), client, "localhost")

    assert peer is not None
    user = pki.user_of_certificate(peer)
    assert user is not None
    assert user.username == "dana"


async def test_a_server_is_refused_under_a_name_that_is_not_its_own() -> None:
    pki = ClusterPki.load_or_create(None)
    client = ssl.create_default_context(cadata=pki.ca_pem)

    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(pki.server_ssl_context(), client, "elsewhere.example")


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> bytes | None:
    """Connect once over TLS and return the client's certificate as the server saw it."""
    seen: list[bytes | None] = []

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        writer.write(b"hello\n")
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=host)
        await reader.readline()
        writer.close()
        await writer.wait_closed()
    return seen[0]
