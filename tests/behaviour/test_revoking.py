"""What an account does to its own objects at home, where it may write anything, neither holds up nor outlives its end.

Each of these is done with the account's own token at the API server itself; then the account is switched off.
"""

from __future__ import annotations

from typing import Any

import pytest

from eventcore.kube import api_path
from tests.behaviour.conftest import ACCOUNT, ENABLED
from tests.behaviour.states import Whole
from tests.behaviour.tampering import (
    Tamper,
    flood,
    freeze,
    hold,
    hold_while_it_goes,
    make_anew,
    mark_for_another,
    name_another_object,
    name_no_tenant,
    strip,
)

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any


@pytest.mark.parametrize("tamper", [strip, mark_for_another, make_anew])
async def test_a_binding_at_home_whose_marks_are_gone_is_marked_again_and_goes_with_the_tenant(
    tenancy: Tenancy, until: Any, tamper: Tamper
) -> None:
    # Given an account that has everything
    await tenancy.make()
    account = Whole(tenancy)
    token = await account.has()
    marks = (await tenancy.must("RoleBinding", tenancy.home, ACCOUNT))["metadata"]["annotations"]

    # When it takes our marks off, or writes them anew, then they are put back
    async with tenancy.cluster.client(tenancy.cluster.as_token(token, direct=True)) as client:
        await tamper(client, account)

    async def marked() -> bool:
        found = await tenancy.get("RoleBinding", tenancy.home, ACCOUNT)
        return bool(found and found["metadata"].get("annotations") == marks and found["subjects"] == [account.subject])

    await until(marked)
    await account.has()

    # And when its Tenant is deleted and it is switched off, then nothing is left, least of all its role at home
    await tenancy.admin.delete(api_path("capsule.clastix.io", "v1beta2", "tenants", name=tenancy.name))
    path = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
    await tenancy.admin.merge_patch(path, {"metadata": {"annotations": {ENABLED: None}}})
    await account.has_nothing(token)


@pytest.mark.parametrize("tamper", [strip, pytest.param(mark_for_another, marks=pytest.mark.slow)])
async def test_marks_that_are_taken_off_while_nobody_works_are_no_rescue(tenancy: Tenancy, tamper: Tamper) -> None:
    # Given an account that has everything, and a namespace of its tenant that leaves it
    await tenancy.make()
    account = Whole(tenancy)
    token = await account.has()

    # When it takes the marks off everything while router and workers are down, and is switched off meanwhile
    await tenancy.cluster.stop("router", "worker")
    try:
        async with tenancy.cluster.client(tenancy.cluster.as_token(token, direct=True)) as client:
            await tamper(client, account)
        path = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
        await tenancy.admin.merge_patch(path, {"metadata": {"annotations": {ENABLED: None}}})
    finally:
        await tenancy.cluster.start()

    # Then nothing is left when they are back
    await account.has_nothing(token, owner=True)


@pytest.mark.parametrize("tamper", [name_no_tenant, name_another_object, hold, hold_while_it_goes, freeze, flood])
async def test_nothing_that_an_account_does_at_home_holds_up_or_outlives_its_end(
    tenancy: Tenancy, until: Any, tamper: Tamper
) -> None:
    # Given an account that has everything
    await tenancy.make()
    account = Whole(tenancy)
    token = await account.has()

    # When it spoils what it can, and is switched off at that moment
    async with tenancy.cluster.client(tenancy.cluster.as_token(token, direct=True)) as client:
        await tamper(client, account)
        path = api_path("", "v1", "serviceaccounts", namespace=tenancy.home, name=ACCOUNT)
        await tenancy.admin.merge_patch(path, {"metadata": {"annotations": {ENABLED: None}}})

    # Then nothing is left of what it had, and its token is dead, at the API server too
    await account.has_nothing(token, owner=True)

    async def dead() -> bool:
        async with tenancy.cluster.wire(token, direct=True) as api:
            return bool((await api.get("/version")).status == 401)

    await until(dead)
