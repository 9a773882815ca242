"""The serving certificate follows its files, both together; what is broken changes nothing and is said once."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from eventcore import logs
from eventcore.metrics import Metrics
from eventcore.settings import Settings
from proxycore.certificates import ServingCertificate
from proxycore.main import serving_tls
from proxycore.measures import Measures

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.pki import ClusterPki

Pair = tuple[str, str]


class Mounted:
    """A Secret as kubelet mounts it: files are links into a directory that is replaced by renaming one link."""

    def __init__(self, root: Path, pair: Pair, pki: ClusterPki) -> None:
        self.root = root
        self.pki = pki
        self._count = 0
        self.put(pair)
        for name in ("tls.crt", "tls.key"):
            (root / name).symlink_to(f"..data/{name}")
        settings = Settings(proxy_tls_cert=str(root / "tls.crt"), proxy_tls_key=str(root / "tls.key"))
        self.metrics = Metrics()
        context = serving_tls(settings)
        assert context is not None
        self.context = context
        files = settings.proxy_tls_cert, settings.proxy_tls_key
        self.certificate = ServingCertificate(self.context, *files, Measures(self.metrics))

    def put(self, pair: Pair) -> None:
        """Replace both files in one step."""
        self._count += 1
        place = self.root / f"..{self._count}"
        place.mkdir()
        (place / "tls.crt").write_text(pair[0])
        (place / "tls.key").write_text(pair[1])
        link = self.root / "..data_tmp"
        link.symlink_to(place.name)
        link.replace(self.root / "..data")

    def loads(self, result: str) -> float | None:
        return self.metrics.registry.get_sample_value("tether_proxy_certificate_loads_total", {"result": result})

    async def served(self) -> int:
        """Return the serial number that a new client is shown."""
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=self.context)
        async with server:
            trust = ssl.create_default_context(cadata=self.pki.ca_pem)
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            await reader.read()
            writer.close()
        return x509.load_der_x509_certificate(shown).serial_number


@pytest.fixture
def mounted(tmp_path: Path, pki: ClusterPki, serving: Pair) -> Mounted:
    return Mounted(tmp_path, serving, pki)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    logs.configure("info", "json", "proxy")
    return capsys


def serial(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair[0].encode()).serial_number


async def test_a_secret_that_is_replaced_as_a_whole_is_served(mounted: Mounted, pki: ClusterPki, serving: Pair) -> None:
    renewed = pki.issue_serving(["127.0.0.1", "localhost"])
    assert not mounted.certificate.look()
    assert await mounted.served() == serial(serving)

    mounted.put(renewed)

    assert mounted.certificate.look()
    assert await mounted.served() == serial(renewed)
    assert (mounted.loads("loaded"), mounted.loads("refused")) == (1.0, 0.0)
    expiry = x509.load_pem_x509_certificate(renewed[0].encode()).not_valid_after_utc.timestamp()
    name = "tether_proxy_certificate_expiry_timestamp_seconds"
    assert mounted.metrics.registry.get_sample_value(name) == expiry


@pytest.mark.parametrize("broken", ["key of another", "no certificate", "no key", "nothing", "key with a password"])
async def test_what_cannot_be_used_changes_nothing_is_said_once_and_is_mended_by_the_next(
    mounted: Mounted, pki: ClusterPki, serving: Pair, said: pytest.CaptureFixture[str], broken: str
) -> None:
    renewed = pki.issue_serving(["127.0.0.1", "localhost"])
    mounted.put(
        {
            "key of another": (renewed[0], serving[1]),
            "no certificate": ("broken", renewed[1]),
            "no key": (renewed[0], "broken"),
            "nothing": ("", ""),
            "key with a password": (renewed[0], locked(renewed[1])),
        }[broken]
    )

    assert [mounted.certificate.look() for _ in range(3)] == [False] * 3
    text = said.readouterr().err
    assert text.count("changed certificate cannot be used, the one before goes on") == 1
    assert "PRIVATE KEY" not in text
    assert await mounted.served() == serial(serving)

    mounted.put(renewed)
    assert mounted.certificate.look()
    assert await mounted.served() == serial(renewed)
    assert (mounted.loads("loaded"), mounted.loads("refused")) == (1.0, 1.0)


async def test_files_that_are_gone_change_nothing_and_are_said(
    mounted: Mounted, serving: Pair, said: pytest.CaptureFixture[str]
) -> None:
    (mounted.root / "tls.key").unlink()

    assert [mounted.certificate.look() for _ in range(2)] == [False] * 2
    assert said.readouterr().err.count("the one before goes on") == 1
    assert await mounted.served() == serial(serving)


async def test_a_renewal_that_comes_while_it_is_read_is_taken_with_the_next_look(
    mounted: Mounted, pki: ClusterPki, serving: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (pki.issue_serving(["127.0.0.1", "localhost"]) for _ in range(2))
    read = type(mounted.root).read_bytes

    def between_the_two(path: Path) -> bytes:
        content = read(path)
        if path.name == "tls.crt":
            mounted.put(second)  # the key that is read next is of another certificate
        return content

    mounted.put(first)
    with monkeypatch.context() as patched:
        patched.setattr(type(mounted.root), "read_bytes", between_the_two)
        assert not mounted.certificate.look()
    assert await mounted.served() == serial(serving)

    assert mounted.certificate.look()
    assert await mounted.served() == serial(second)


def locked(key: str) -> str:
    found = load_pem_private_key(key.encode(), None)
    return found.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"password")
    ).decode()
