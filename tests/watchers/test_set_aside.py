"""An object that the bus cannot name is set aside and told; the kind is vouched for, and nobody else notices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.events import AuditRecord, Mark, decode_body
from eventcore.keys import MAX_TOKEN, ObjectKey
from eventcore.objects import LABEL_COMPONENT
from eventcore.settings import Settings
from watchers.answers import UnreadableError, read
from watchers.kinds import KindRow, rows

if TYPE_CHECKING:
    from tests.watchers.conftest import World

BINDINGS = "/apis/rbac.authorization.k8s.io/v1/rolebindings"
OURS = {"labels": {LABEL_COMPONENT: "rbac"}}
GOOD = ObjectKey("RoleBinding", "oil-system", "gitops-reconciler")


async def marked(world: World, version: str) -> None:
    """Wait until somebody vouches for the kind at this version or a later one."""

    def holds() -> bool:
        found = [m for m in world.objects.messages if m.subject == "marks.RoleBinding"]
        return any(int(decode_body(Mark, mark.data).resource_version) >= int(version) for mark in found)

    await world.objects.until(holds)


async def test_a_hundred_objects_with_names_of_thousands_of_characters_stop_nobody(world: World) -> None:
    # given a watcher and an object of the kind
    await world.api.put(BINDINGS, GOOD.name, namespace=GOOD.namespace, metadata=dict(OURS))
    async with world.watcher() as role:
        await world.objects.until_many(GOOD, 1)

        # when a developer makes a hundred of which no subject can hold the name, and more happens
        names = [f"{number:03}\x1b[31m" + "a" * 5000 for number in range(100)]
        for name in names:
            await world.api.put(BINDINGS, name, namespace="dev", metadata=dict(OURS))
        changed = await world.api.put(BINDINGS, GOOD.name, namespace=GOOD.namespace, metadata={**OURS, "generation": 2})

        # then what happened is on the bus, the kind is vouched for, the connection holds, and each is told once
        await world.objects.until_many(GOOD, 2)
        await marked(world, changed["metadata"]["resourceVersion"])
        await world.audit.until(lambda: len(world.audit.messages) >= 100)
        assert "tether_bus_reconnects_total 0.0" in role.metrics.render().decode()
        assert (
            'tether_watch_refused_objects_total{kind="RoleBinding",why="name"} 100.0' in role.metrics.render().decode()
        )
        told = [decode_body(AuditRecord, message.data) for message in world.audit.messages]
        assert {one.object[:25] for one in told} == {f"RoleBinding/dev/{number:03}\\u001b" for number in range(100)}
        assert all(one.object.isprintable() and len(one.object) < 300 for one in told)

        # and after they are listed again, changed and deleted, all goes on without a restart
        await world.api.cut_watches()
        await world.api.until_asked("LIST", BINDINGS, 2)
        await world.api.put(BINDINGS, names[0], namespace="dev", metadata={**OURS, "generation": 2})
        for name in names:
            await world.api.delete(BINDINGS, name, namespace="dev")
        await world.api.delete(BINDINGS, GOOD.name, namespace=GOOD.namespace)
        await world.objects.until_many(GOOD, 3)
        await marked(world, str(world.api.version))
        assert "tether_bus_reconnects_total 0.0" in role.metrics.render().decode()
        await world.audit.until(lambda: len(world.audit.messages) >= 200)
    told = [decode_body(AuditRecord, message.data) for message in world.audit.messages]
    assert [one.action for one in told] == ["refused"] * 100 + ["restored"] * 100
    assert {one.object for one in told[:100]} == {one.object for one in told[100:]}
    assert {m.subject for m in world.objects.messages if m.subject.startswith("objects.")} == {GOOD.subject()}


names = st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=20), st.integers(1, 2 * MAX_TOKEN))
ROWS = rows(Settings(enable_reflector=True, proxy_all_namespaced=True, proxy_ca_namespace="p"))


@given(st.sampled_from(ROWS), names, st.text(max_size=80), st.dictionaries(names, names, max_size=2))
def test_of_any_object_something_that_the_bus_takes_can_be_said_or_it_is_set_aside(
    row: KindRow, name: str, namespace: str, labels: dict[str, str]
) -> None:
    metadata = {"name": name, "namespace": namespace, "uid": "u", "resourceVersion": "1", "labels": labels}
    answer = read(row, msgspec.json.encode({"metadata": metadata}))
    for limit in (1024, 10_000, 1_000_000):
        said = answer.say(limit)
        assert len(said.body) <= limit or said.withheld or not answer.key.fits
        if answer.key.fits:
            assert ObjectKey.of_subject(answer.key.subject()) == answer.key


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"metadata":{}}', b'{"metadata":{"name":7}}', b"\xff", b"[" * 10_000]
)
def test_what_has_no_name_is_unreadable(raw: bytes) -> None:
    with pytest.raises(UnreadableError):
        read(ROWS[0], raw)


@pytest.mark.parametrize("broken", [{"labels": 7}, {"annotations": {"a": {}}}, {"generation": "9" * 5000}])
def test_what_has_a_name_alone_is_a_mark(broken: dict[str, object]) -> None:
    answer = read(
        ROWS[0], msgspec.json.encode({"metadata": {"name": "oil", "uid": "u", "resourceVersion": "7", **broken}})
    )
    said = answer.say(10_000)
    assert (said.withheld, answer.key.name, answer.version.resource_version) == ("undecodable", "oil", "7")
    assert b"9999" not in said.body
