"""The embedded API as a whole: it comes back on its folder as it was, and lets go of everything when it stops."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
import yaml

from tether.devcluster import controllers
from tether.devcluster.api import ApiOptions, EmbeddedApi
from tether.devcluster.objects import clone, name_of, namespace_of
from tether.devcluster.resources import CONFIG_MAPS, NAMESPACES

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.contracts import Change
    from tether.devcluster.pki import ClusterPki
    from tether.devcluster.store import Store
    from tether.devcluster.tokens import TokenIssuer


async def test_an_api_comes_back_on_its_folder_as_it_was(tmp_path: Path) -> None:
    # given
    first = EmbeddedApi(ApiOptions(data_dir=tmp_path))
    await first.start()
    made = first.store.create(CONFIG_MAPS, {"metadata": {"name": "a", "namespace": "default"}})
    port = int(first.url.rsplit(":", 1)[1])
    authority = first.pki.ca_pem
    await first.stop()
    # when
    second = EmbeddedApi(ApiOptions(data_dir=tmp_path))
    await second.start(port=port)
    # then
    assert second.store.get(CONFIG_MAPS, "default", "a") == made
    assert second.pki.ca_pem == authority
    assert second.url == first.url
    await second.stop()


async def _settled(api: EmbeddedApi, marker: str) -> list[Change]:
    """Return all that changes until the controllers have seen to a new namespace, and to all that was before it."""
    changes = api.store.changes()
    api.store.create(NAMESPACES, {"metadata": {"name": marker}})
    seen: list[Change] = []
    async with asyncio.timeout(20):
        while not seen or (namespace_of(seen[-1].obj), name_of(seen[-1].obj)) != (marker, "kube-root-ca.crt"):
            seen.append(await anext(changes))
    changes.close()
    return seen


async def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    # given
    first = EmbeddedApi(ApiOptions(data_dir=tmp_path))
    await first.start()
    await _settled(first, "one")
    await _settled(first, "two")
    await first.stop()
    before = first.store.version
    # when
    second = EmbeddedApi(ApiOptions(data_dir=tmp_path))
    await second.start()
    started_at = second.store.version
    seen = await _settled(second, "three") + await _settled(second, "four")
    await second.stop()
    # then
    assert started_at == before
    assert {namespace_of(change.obj) or name_of(change.obj) for change in seen} == {"three", "four"}


async def test_controllers_that_failed_go_on_with_the_next_change(
    pki: ClusterPki, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given -- the first run of the controllers fails
    runs: list[str] = []
    real = controllers.run

    async def failing_once(store: Store, issuer: TokenIssuer) -> None:
        runs.append("run")
        if len(runs) == 1:
            raise ValueError("tripped")
        await real(store, issuer)

    monkeypatch.setattr(controllers, "run", failing_once)
    api = EmbeddedApi(pki=pki)
    await api.start()
    # when
    await asyncio.sleep(0)
    await _settled(api, "later")
    # then
    assert runs == ["run", "run"]
    await api.stop()


async def test_a_port_in_use_is_an_os_error(pki: ClusterPki) -> None:
    # given
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        api = EmbeddedApi(pki=pki)
        # when
        with pytest.raises(OSError, match="address already in use"):
            await api.start(port=taken.getsockname()[1])
    # then
    await api.stop()


async def test_the_administrators_kubeconfig_holds_all_that_is_needed(api: EmbeddedApi) -> None:
    # when
    config = yaml.safe_load(api.admin_kubeconfig())
    # then
    assert config["clusters"][0]["cluster"]["server"] == api.url
    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
    assert config["current-context"] == config["contexts"][0]["name"]


async def test_stop_can_be_called_twice(pki: ClusterPki) -> None:
    # given
    api = EmbeddedApi(pki=pki)
    await api.start()
    # when
    await api.stop()
    await api.stop()
    # then
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", int(api.url.rsplit(":", 1)[1]))


async def test_objects_are_shared_and_never_changed_by_the_store(api: EmbeddedApi) -> None:
    # given
    made = api.store.create(CONFIG_MAPS, {"metadata": {"name": "a", "namespace": "default"}, "data": {"k": "1"}})
    copy = clone(made)
    # when
    api.store.update(CONFIG_MAPS, clone(made) | {"data": {"k": "2"}})
    api.store.delete(CONFIG_MAPS, "default", "a")
    # then
    assert made == copy
