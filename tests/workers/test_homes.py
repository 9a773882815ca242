"""Before a right is given the API server says whose the home is: a view that is behind gives nothing to a squatter."""

from __future__ import annotations

import msgspec
import pytest

from eventcore.reading import Reader
from tests.workers.conftest import Line
from workers.entitlement import Entitlement, Judge, OutdatedError
from workers.ownership import Account
from workers.relations import Relations

OIL = Account("oil-system", "gitops-reconciler")


@pytest.fixture
async def judge(line: Line) -> Judge:
    """A judge whose view knows nothing, beside the guide's example with a second Tenant."""
    await line.apply_files("capsule-configuration.yaml", "oil.yaml", "gas.yaml")
    return Judge(line.client, Reader.objects(line.bus), Relations(), line.settings)


async def entitlement(line: Line) -> Entitlement:
    found = await line.must("ServiceAccount", OIL.namespace, OIL.name)
    return Entitlement(OIL, found["metadata"]["uid"], ("oil",))


async def join(line: Line, tenant: str) -> None:
    """Make the home a member of a Tenant, past Capsule's admission."""
    store = line.api.store
    namespaces = store.resource("", "namespaces")
    assert namespaces is not None
    home = store.get(namespaces, "", OIL.namespace)
    assert home is not None
    new = msgspec.json.decode(msgspec.json.encode(home))
    owner = await line.must("Tenant", "", tenant)
    reference = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": tenant}
    new["metadata"]["ownerReferences"] = [reference | {"uid": owner["metadata"]["uid"]}]
    new["metadata"]["labels"]["capsule.clastix.io/tenant"] = tenant
    store.update(namespaces, new)


async def test_a_home_of_nobody_or_of_the_accounts_own_tenant_is_no_obstacle(line: Line, judge: Judge) -> None:
    mine = await entitlement(line)
    await judge.confirm(mine)
    with pytest.raises(OutdatedError):
        await judge.confirm_lost(OIL, ["oil"])

    await join(line, "oil")

    await judge.confirm(mine)
    with pytest.raises(OutdatedError):
        await judge.confirm_lost(OIL, ["oil"])


async def test_a_home_of_another_tenant_gives_nothing_and_lets_everything_be_taken(line: Line, judge: Judge) -> None:
    mine = await entitlement(line)

    await join(line, "gas")

    with pytest.raises(OutdatedError, match="member of Tenant gas"):
        await judge.confirm(mine)
    await judge.confirm_lost(OIL, ["oil"])


async def test_a_label_alone_makes_no_member(line: Line, judge: Judge) -> None:
    # Given a home that only says so: whoever may label it must not be able to take anything from the account
    mine = await entitlement(line)
    store = line.api.store
    namespaces = store.resource("", "namespaces")
    assert namespaces is not None
    home = store.get(namespaces, "", OIL.namespace)
    assert home is not None
    new = msgspec.json.decode(msgspec.json.encode(home))
    new["metadata"]["labels"]["capsule.clastix.io/tenant"] = "gas"
    store.update(namespaces, new)

    await judge.confirm(mine)
