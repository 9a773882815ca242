"""What an account may have by the view, and what the API server must say too before anything is given: pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from eventcore.clock import now
from eventcore.errors import ForbiddenError, KubeUnreachableError, NotFoundError, ServerError
from eventcore.events import Mark
from eventcore.objects import ServiceAccount
from eventcore.settings import Settings
from workers.entitlement import OPTIONAL_KINDS, REQUIRED_KINDS, SERVED_FOR, Entitlement, Judge, OutdatedError
from workers.ownership import Account, Owner, OwnerState
from workers.relations import Relations

OIL = Account("oil-system", "sa")
MINE = Entitlement(OIL, "u1", ("oil",))
MARK = Mark(kind="any", resource_version="1", time=now())


def account(**metadata: Any) -> dict[str, Any]:
    enabled = {"capsule.addon.fluxcd/enabled": "true"}
    return {"metadata": {"name": "sa", "namespace": "oil-system", "uid": "u1", "annotations": enabled} | metadata}


def tenant(name: str = "oil", *owners: str, **more: Any) -> dict[str, Any]:
    spec = {"owners": [{"kind": "ServiceAccount", "name": one} for one in owners]}
    return {"metadata": {"name": name, "uid": f"uid-{name}", "generation": 1}, "spec": spec} | more


def namespace(name: str, of: str = "", uid: str = "") -> dict[str, Any]:
    if not of:
        return {"metadata": {"name": name}}
    reference = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": of, "uid": uid or f"uid-{of}"}
    return {"metadata": {"name": name, "labels": {"capsule.clastix.io/tenant": of}, "ownerReferences": [reference]}}


class Api:
    """An API server with these objects, by path from the plural on."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {
            "serviceaccounts/sa": account(),
            "namespaces/oil-system": namespace("oil-system"),
            "tenants/oil": tenant("oil", OIL.username),
            "tenants/gas": tenant("gas"),
        }
        self.asked: list[str] = []

    async def get_as(self, kind: type[Any], path: str) -> Any:
        self.asked.append(path)
        found = self.objects.get("/".join(path.split("/")[-2:]))
        if found is None:
            raise NotFoundError(path, status=404)
        if isinstance(found, Exception):
            raise found
        return msgspec.convert(found, kind)


def stale(_: str) -> float:
    """Return the age of a view for which nobody has vouched lately."""
    return Settings().max_view_age + 1


def judge(
    api: Api | None = None,
    relations: Relations | None = None,
    *marked: str,
    grace: float = 30.0,
    age: Callable[[str], float] = lambda _: 1.0,
) -> Judge:
    view = SimpleNamespace(mark=lambda kind: MARK if kind in marked else None, age=age)
    settings = msgspec.structs.replace(Settings(), owner_status_grace=grace)
    return Judge(cast("Any", api or Api()), cast("Any", SimpleNamespace(view=view)), relations or Relations(), settings)


def owning(*tenants: str, since: float | None = None) -> Relations:
    """Return relations in which the account is enabled and owns tenants, by a status that is that old if it is."""
    found = Relations()
    found.accounts[OIL] = msgspec.convert(account(), ServiceAccount)
    me = frozenset({Owner("ServiceAccount", OIL.username)})
    for name in tenants:
        state = OwnerState(me) if since is None else OwnerState(stale=me, since=now() - timedelta(seconds=since))
        found._owners[name] = state  # noqa: SLF001 -- what the index of owners says
        found._tenants_of[next(iter(me))].add(name)  # noqa: SLF001 -- the same
    return found


def at_home_of(relations: Relations, name: str) -> Relations:
    relations._tenant_of[OIL.namespace] = name  # noqa: SLF001 -- whose the home is
    return relations


# By the view.


def test_an_enabled_owner_has_what_its_tenants_give_in_their_order() -> None:
    found = judge(relations=owning("oil", "gas")).look(OIL)

    assert found == Entitlement(OIL, "u1", ("gas", "oil"))
    assert found.tenant == "gas"


def test_who_is_unknown_or_switched_off_or_owns_nothing_has_nothing() -> None:
    off, gone = owning("oil"), owning("oil")
    off.accounts[OIL] = msgspec.convert(account(annotations={}), ServiceAccount)
    del gone.accounts[OIL]

    for relations in (off, gone, owning()):
        assert judge(relations=relations).look(OIL) is None
        assert judge(relations=relations).refused(OIL) is None
    assert judge(relations=off).why_not(OIL) == judge(relations=gone).why_not(OIL) == "it is not enabled any more"
    assert judge(relations=owning()).why_not(OIL) == "it owns no Tenant any more"


def test_a_home_in_a_tenant_of_others_keeps_everything_from_an_owner() -> None:
    squatted = at_home_of(owning("oil"), "gas")

    assert judge(relations=squatted).look(OIL) is None
    assert judge(relations=squatted).refused(OIL) == (MINE, "gas")
    assert "member of Tenant gas" in judge(relations=squatted).why_not(OIL)


def test_a_home_in_an_own_tenant_or_in_none_keeps_nothing() -> None:
    for relations in (owning("oil"), at_home_of(owning("oil"), "oil")):
        assert judge(relations=relations).look(OIL) == MINE
        assert judge(relations=relations).refused(OIL) is None


def test_an_owner_by_a_stale_status_alone_has_it_for_the_grace_and_until_then() -> None:
    found = judge(relations=owning("oil", since=10), grace=30).look(OIL)

    assert found is not None
    assert found.until is not None
    assert 15 < (found.until - now()).total_seconds() <= 20
    assert judge(relations=owning("oil", since=31), grace=30).look(OIL) is None


# What is known at all.


@pytest.mark.parametrize("kind", REQUIRED_KINDS)
async def test_without_a_mark_of_a_required_kind_nothing_is_known(kind: str) -> None:
    others = {*REQUIRED_KINDS, *OPTIONAL_KINDS} - {kind}

    assert set(REQUIRED_KINDS) == {"ServiceAccount", "Namespace", "Tenant", "Secret"}
    assert await judge(None, None, *others).missing() == kind


@pytest.mark.parametrize(("kind", "plural"), OPTIONAL_KINDS.items())
async def test_an_optional_kind_is_missing_only_where_it_is_served(kind: str, plural: str) -> None:
    api = Api()
    others = {*REQUIRED_KINDS, *OPTIONAL_KINDS} - {kind}

    api.objects["capsule.clastix.io/v1beta2"] = {"resources": [{"name": "tenants"}]}
    assert await judge(api, None, *others).missing() == ""
    api.objects["capsule.clastix.io/v1beta2"] = {"resources": [{"name": "tenants"}, {"name": plural}]}
    assert await judge(api, None, *others).missing() == kind
    assert await judge(api, None, kind, *others).missing() == ""
    del api.objects["capsule.clastix.io/v1beta2"]
    assert await judge(api, None, *others).missing() == ""
    assert api.asked == ["/apis/capsule.clastix.io/v1beta2"] * 3


async def test_what_is_served_is_asked_again_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("workers.entitlement.time.monotonic", lambda: clock)
    api = Api()
    api.objects["capsule.clastix.io/v1beta2"] = {"resources": [{"name": "tenantowners"}]}
    one = judge(api, None, *REQUIRED_KINDS)

    for seconds, wanted in ((0, 1), (SERVED_FOR, 1), (0.5, 2)):
        clock += seconds
        assert await one.missing() == "TenantOwner"
        assert len(api.asked) == wanted


async def test_while_it_was_never_said_what_is_served_the_failure_is_the_answer() -> None:
    api = Api()
    api.objects["capsule.clastix.io/v1beta2"] = ForbiddenError("no", status=403)

    with pytest.raises(ForbiddenError):
        await judge(api, None, *REQUIRED_KINDS).missing()


# By the API server, before anything is given.


async def test_an_owner_is_confirmed_by_any_of_its_tenants() -> None:
    api = Api()

    await judge(api).confirm(MINE)
    await judge(api).confirm(Entitlement(OIL, "u1", ("gas", "oil")))

    assert set(api.asked) == {
        "/api/v1/namespaces/oil-system",
        "/api/v1/namespaces/oil-system/serviceaccounts/sa",
        "/apis/capsule.clastix.io/v1beta2/tenants/oil",
        "/apis/capsule.clastix.io/v1beta2/tenants/gas",
    }


@pytest.mark.parametrize(
    "found",
    [None, account(annotations={}), account(uid="u2"), account(deletionTimestamp=now())],
    ids=["gone", "switched off", "made anew", "being deleted"],
)
async def test_an_account_that_was_just_changed_gets_nothing(found: Any) -> None:
    api = Api()
    api.objects["serviceaccounts/sa"] = found

    with pytest.raises(OutdatedError, match="just been changed"):
        await judge(api).confirm(MINE)


@pytest.mark.parametrize(
    "found",
    [None, tenant("oil"), tenant("oil", "system:serviceaccount:oil-system:other")],
    ids=["gone", "nobody's", "of another"],
)
async def test_who_has_just_lost_its_tenant_gets_nothing(found: Any) -> None:
    api = Api()
    api.objects["tenants/oil"] = found

    with pytest.raises(OutdatedError, match="just lost its Tenant"):
        await judge(api).confirm(MINE)


async def test_an_owner_by_a_status_that_is_behind_gets_nothing_new() -> None:
    api = Api()
    mine = [{"kind": "ServiceAccount", "name": OIL.username}]
    api.objects["tenants/oil"] = tenant("oil", status={"owners": mine, "observedGeneration": 7})

    with pytest.raises(OutdatedError, match="just lost its Tenant"):
        await judge(api).confirm(MINE)


async def test_an_account_in_a_tenant_of_others_gets_nothing_and_in_its_own_it_does() -> None:
    api = Api()
    api.objects["namespaces/oil-system"] = namespace("oil-system", "gas")

    with pytest.raises(OutdatedError, match="just become a member of Tenant gas"):
        await judge(api).confirm(MINE)

    for home in (namespace("oil-system", "oil"), namespace("oil-system", "gas", uid="uid-before"), None):
        api.objects["namespaces/oil-system"] = home
        await judge(api).confirm(MINE)
    api.objects["namespaces/oil-system"] = namespace("oil-system", "gone")
    await judge(api).confirm(MINE)


async def test_a_namespace_gets_something_while_it_is_the_tenants() -> None:
    api = Api()
    api.objects["namespaces/oil-1"] = namespace("oil-1", "oil")

    await judge(api).confirm_namespace("oil-1", "oil")

    for name, of in (("oil-1", "gas"), ("oil-2", "oil"), ("oil-system", "oil")):
        with pytest.raises(OutdatedError, match=f"{name} has just left Tenant {of}"):
            await judge(api).confirm_namespace(name, of)
    for name in ("oil-1", "oil-2", "oil-system"):
        with pytest.raises(OutdatedError, match="left its Tenant"):
            await judge(api).confirm_namespace(name, "")


async def test_a_namespace_is_outside_while_it_says_nothing_of_a_tenant() -> None:
    api = Api()
    api.objects["namespaces/said"] = {"metadata": {"name": "said", "labels": {"capsule.clastix.io/tenant": "gas"}}}

    await judge(api).confirm_outside("oil-system")
    await judge(api).confirm_outside("nowhere")

    with pytest.raises(OutdatedError, match="just become one of Tenant gas"):
        await judge(api).confirm_outside("said")


# And before anything is taken.


async def test_a_namespace_that_is_still_the_accounts_by_the_api_server_keeps_what_it_has() -> None:
    api = Api()
    api.objects["namespaces/oil-1"] = namespace("oil-1", "oil")

    with pytest.raises(OutdatedError, match="oil-1 is of Tenant oil"):
        await judge(api).confirm_left(OIL, "oil-1", ["gas", "oil"])


@pytest.mark.parametrize(
    ("of", "owner", "tenants"),
    [
        ("", OIL.username, ["oil"]),
        ("oil", "x", ["oil"]),
        ("oil", OIL.username, ["gas"]),
        ("gas", OIL.username, ["oil"]),
    ],
    ids=["of nobody", "of another owner", "of another tenant than asked for", "gone over to another"],
)
async def test_a_namespace_that_is_not_the_accounts_any_more_loses_what_it_has(
    of: str, owner: str, tenants: list[str]
) -> None:
    api = Api()
    api.objects["namespaces/oil-1"] = namespace("oil-1", of)
    api.objects["tenants/oil"] = tenant("oil", owner)

    await judge(api).confirm_left(OIL, "oil-1", tenants)
    await judge(api).confirm_left(OIL, "gone", tenants)


async def test_an_owner_whose_home_went_over_to_others_loses_everything() -> None:
    api = Api()
    api.objects["namespaces/oil-system"] = namespace("oil-system", "gas")

    await judge(api).confirm_lost(OIL, ["oil"])


async def test_where_nobody_knows_it_is_said_what_is_not_known() -> None:
    api = Api()
    api.objects["serviceaccounts/sa"] = api.objects["namespaces/oil-1"] = KubeUnreachableError("no answer")
    unsure = judge(api, age=stale)

    with pytest.raises(OutdatedError, match=r"neither API server \(no answer\) nor .* say what oil-system/sa owns"):
        await unsure.confirm_lost(OIL, ["oil"])
    with pytest.raises(OutdatedError, match="say whose oil-1 is"):
        await unsure.confirm_left(OIL, "oil-1", ["oil"])


AWAY, REFUSED = ServerError("etcd is away", status=500), ForbiddenError("no right", status=403)


@pytest.mark.parametrize("failures", [(AWAY,), (AWAY, REFUSED), (REFUSED, AWAY)], ids=["alone", "first", "last"])
async def test_a_tenant_that_cannot_be_asked_leaves_it_open_whatever_is_said_of_others(failures: Any) -> None:
    api = Api()
    names = [f"t{number}" for number, _ in enumerate(failures)]
    api.objects |= {f"tenants/{name}": failure for name, failure in zip(names, failures, strict=True)}

    with pytest.raises(OutdatedError, match="neither"):
        await judge(api, age=stale).confirm_lost(OIL, names)
    await judge(api).confirm_lost(OIL, names)


async def test_a_refusal_of_the_api_server_is_no_objection_also_where_nobody_vouches() -> None:
    api = Api()
    api.objects["tenants/oil"] = REFUSED

    await judge(api, age=stale).confirm_lost(OIL, ["oil"])


async def test_an_api_server_that_does_not_answer_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    api.objects["tenants/oil"] = TimeoutError()
    monkeypatch.setattr("workers.entitlement.OBJECTION", 0.01)

    with pytest.raises(OutdatedError, match="no answer in time"):
        await judge(api, age=stale).confirm_lost(OIL, ["oil"])


@pytest.mark.parametrize("kind", REQUIRED_KINDS)
async def test_a_kind_for_which_nobody_vouches_past_the_limit_is_one_that_is_not_known(kind: str) -> None:
    api = Api()
    api.objects["tenants/oil"] = AWAY
    limit = Settings().max_view_age

    await judge(api, age=lambda asked: limit if asked == kind else 0.0).confirm_lost(OIL, ["oil"])
    with pytest.raises(OutdatedError, match=f"watchers of {kind} "):
        await judge(api, age=lambda asked: limit + 0.1 if asked == kind else 0.0).confirm_lost(OIL, ["oil"])
