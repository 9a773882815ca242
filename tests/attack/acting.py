"""Whose rights somebody has: callers who act as themselves, who give themselves operations, who are promoted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from eventcore.kube import api_path
from tests.attack.asking import EMPTY, REFUSED, Ask, acting, asking, judge
from tests.attack.cases import Attack, Case, Ground
from tests.attack.objects import MARK, write
from tests.attack.stage import NAMESPACES, Stage
from tests.attack.victim import StuckError, Victim
from tests.attack.world import CLASS, NODE
from tests.behaviour.conftest import ENABLED, Object, Tenancy, eventually, path

Headers = tuple[tuple[str, str], ...]
_SETTINGS: Final = ("capsule.clastix.io", "v1beta1", "proxysettings")
_SEEN_SECONDS: Final = 3.0
_PROMOTE: Final = "owner.projectcapsule.dev/promote"


def _own(home: str) -> tuple[str, ...]:
    return ("system:serviceaccounts", f"system:serviceaccounts:{home}", "system:authenticated")


def _groups(*which: int) -> Any:
    return lambda user, home: acting(user, *(_own(home)[number] for number in which))


CORDONED: Final[dict[str, Any]] = {
    "as nobody else": lambda _user, _home: (),
    "as itself": lambda user, _: acting(user),
    "as itself with all of its groups": _groups(0, 1, 2),
    "as itself in system:authenticated alone": _groups(2),
    "as itself in the group of all accounts alone": _groups(0),
    "as itself in two of its groups": _groups(0, 2),
    "as itself in a group twice": _groups(2, 2),
    "as itself in a group that is nobody's": lambda user, _: acting(user, "nobodys"),
    "as itself with an extra": lambda user, _: acting(user, Extra_scopes="a"),
    "as itself with an encoded extra": lambda user, _: (*acting(user), ("Impersonate-Extra-%41", "a")),
    "as itself in other letters": lambda user, _: (("impersonate-USER", user), ("IMPERSONATE-group", _own("x")[2])),
    "as a group alone": lambda _user, _home: acting("", "system:authenticated")[1:],
    "as itself with a uid": lambda user, _: acting(user, Uid="0"),
}


def cordoned(headers: Any) -> Attack:
    """An owner whose tenant is cordoned tries to make something all the same."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        hostile = Victim(Tenancy(stage.cluster, stage.admin))
        ground.later(hostile.clean)
        try:
            async with hostile.onboarded() as door:
                await hostile.work(door)
                tenant = path("Tenant", "", hostile.tenancy.name)
                await stage.admin.merge_patch(tenant, {"spec": {"cordoned": True}})
                maps = path("ConfigMap", hostile.namespace)
                plain = await _refused(hostile, maps)
                if not plain:
                    ground.notes.append("nothing is cordoned here")
                ask = Ask(
                    method="POST",
                    path=maps,
                    headers=headers(hostile.tenancy.user, hostile.tenancy.home),
                    body={"metadata": {"name": ground.mark}},
                    expected=REFUSED if plain else REFUSED | {201},
                )
                await judge(ground, door, ask)
                await stage.admin.merge_patch(tenant, {"spec": {"cordoned": False}})
        except StuckError as error:
            ground.found.stopped.append(str(error))
        yield

    return attack


async def _refused(hostile: Victim, maps: str) -> bool:
    """Wait until the API server itself refuses the account, which knows of the cordon a little later."""
    end = time.monotonic() + _SEEN_SECONDS
    async with hostile.tenancy.cluster.wire(hostile.token, direct=True) as client:
        while time.monotonic() < end:
            answer = await client.post(maps, {"metadata": {"generateName": "try-"}}, params={"dryRun": "All"})
            if answer.status != 201:
                return True
            await asyncio.sleep(0.1)
    return False


RIGHTS: Final[dict[str, Any]] = {
    "itself": lambda s: Ask(path=NAMESPACES, headers=acting(s.mallory.user), expected={200}),
    "itself with all of its groups": lambda s: Ask(
        path=NAMESPACES, headers=acting(s.mallory.user, *_own(s.mallory.home)), expected={200}
    ),
    "itself, for a write": lambda s: Ask(
        method="POST",
        path=f"{path('ConfigMap', s.field)}?dryRun=All",
        headers=acting(s.mallory.user),
        body={"metadata": {"name": "written"}},
        expected={201},
    ),
}

SUBJECTS: Final[dict[str, Any]] = {
    "itself": lambda s: {"kind": "ServiceAccount", "name": s.mallory.user},
    "itself as a user": lambda s: {"kind": "User", "name": s.mallory.user},
    "the accounts of its home": lambda s: {"kind": "Group", "name": f"system:serviceaccounts:{s.mallory.home}"},
    "all accounts": lambda _: {"kind": "Group", "name": "system:serviceaccounts"},
    "everybody": lambda _: {"kind": "Group", "name": "system:authenticated"},
    "the bystander": lambda s: {"kind": "ServiceAccount", "name": s.bystander.user},
}
_NODE: Final = f"/api/v1/nodes/{NODE}"
_CLASS: Final = f"/apis/storage.k8s.io/v1/storageclasses/{CLASS}"
KINDS: Final[dict[str, str]] = {"Nodes": _NODE, "StorageClasses": _CLASS, "PersistentVolumes": _NODE}


def given_to_itself(subject: Any, kind: str, target: str) -> Attack:
    """A ProxySetting of a tenant that gives all operations on a kind of the cluster."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        one = subject(stage) | {"proxySettings": [{"kind": kind, "operations": ["List", "Update", "Delete"]}]}
        await _take(ground, one, target)
        yield

    return attack


def shown_to_itself(subject: Any, target: str) -> Attack:
    """A ProxySetting of a tenant that shows, and gives, everything there is by its labels."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        selector = {"matchExpressions": [{"key": "no-such-label", "operator": "DoesNotExist"}]}
        everything = {"apiGroups": ["*"], "resources": ["*"], "selector": selector, "operations": ["List", "Get"]}
        await _take(ground, subject(ground.stage) | {"clusterResources": [everything]}, target)
        yield

    return attack


async def _take(ground: Ground, subject: Object, target: str) -> None:
    """Write the setting, and ask for what it says as soon as Tether has read it."""
    stage = ground.stage
    # With a ProxySetting a tenant shows its own namespaces to whom it likes.
    stage.shared.update({stage.field})
    ground.later(_not_shared(stage))
    collection = api_path(*_SETTINGS, namespace=stage.field)
    body = {
        "apiVersion": "capsule.clastix.io/v1beta1",
        "kind": "ProxySetting",
        "metadata": {"name": ground.mark, "labels": {MARK: ground.mark}},
        "spec": {"subjects": [subject]},
    }
    await write(ground, "mallory", collection, [body])
    await _read(stage, f"{collection}/{ground.mark}")
    door = await stage.door("mallory")
    collection = target.rpartition("/")[0]
    for ask in (
        Ask(path=collection, expected=EMPTY),
        Ask(path=target),
        Ask(method="PATCH", path=target, body={"metadata": {"labels": {"pool": "mine"}}}),
        Ask(method="DELETE", path=f"{target}?dryRun=All"),
        Ask(method="DELETE", path=target),
        Ask(method="DELETE", path=collection),
    ):
        await judge(ground, door, ask)


def _not_shared(stage: Stage) -> Callable[[], Awaitable[None]]:
    async def clear() -> None:
        async with stage.cluster.wire(stage.bystander_token) as client:

            async def taken_back() -> bool:
                return stage.field not in await client.names(NAMESPACES)

            await eventually(taken_back)
        stage.shared.clear()

    return clear


async def _read(stage: Stage, setting: str) -> None:
    """Return once the setting has a status; one that gets none is not read at all."""
    end = time.monotonic() + _SEEN_SECONDS
    while time.monotonic() < end:
        if msgspec.json.decode(await stage.admin.get(setting)).get("status"):
            return
        await asyncio.sleep(0.1)


@asynccontextmanager
async def _promoting(stage: Stage) -> AsyncIterator[None]:
    configuration = path("CapsuleConfiguration", "", "default")
    await stage.admin.merge_patch(configuration, {"spec": {"allowServiceAccountPromotion": True}})
    try:
        yield
    finally:
        await stage.admin.merge_patch(configuration, {"spec": {"allowServiceAccountPromotion": False}})


def promoted(role: str) -> Attack:
    """An owner with a small role makes an account in its own namespace, and has it promoted and enabled."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        tenancy = Tenancy(stage.cluster, stage.admin)
        hostile = Victim(
            tenancy,
            spoil={
                "spec": {
                    "additionalRoleBindings": [],
                    "permissions": {"allowOwnerPromotion": True},
                    "owners": [{"kind": "ServiceAccount", "name": tenancy.user, "clusterRoles": [role]}],
                }
            },
        )
        ground.later(hostile.clean)
        name = "gitops-reconciler"
        async with _promoting(stage), hostile.onboarded() as door:
            await eventually(lambda: _made(door.post(NAMESPACES, {"metadata": {"name": hostile.namespace}})))
            account = {"metadata": {"name": name, "annotations": {ENABLED: "true"}, "labels": {_PROMOTE: "true"}}}
            accounts = path("ServiceAccount", hostile.namespace)
            await eventually(lambda: _made(door.post(accounts, account)))
            # It may be given what the Tenant gives its owners, and no more.
            end = time.monotonic() + _SEEN_SECONDS
            while time.monotonic() < end:
                bound = await tenancy.get("RoleBinding", hostile.namespace, name)
                if bound is not None and bound["roleRef"]["name"] == "cluster-admin":
                    ground.found.leaked.append("a promoted account got cluster-admin in a namespace of the tenant")
                    break
                await asyncio.sleep(0.1)
        yield

    return attack


async def _made(request: Any) -> bool:
    return (await request).status in {201, 409}


def cases() -> Iterator[Case]:
    """All cases of this room."""
    for what, headers in CORDONED.items():
        yield Case(
            name=f"makes something in its cordoned tenant {what}",
            section="C11",
            who="mallory",
            attack=cordoned(headers),
            quick="authenticated" in what,
        )
    for what, make in RIGHTS.items():
        yield Case(name=f"may act as {what}", section="C12", who="mallory", attack=asking("mallory", make), shares=True)
    for what, subject in SUBJECTS.items():
        for kind, target in KINDS.items():
            yield Case(
                name=f"gives {what} all operations on {kind}",
                section="C13",
                who="mallory",
                attack=given_to_itself(subject, kind, target),
                alone=True,
                quick=(what, kind) == ("itself", "Nodes"),
            )
        yield Case(
            name=f"shows {what} everything there is",
            section="C13",
            who="mallory",
            attack=shown_to_itself(subject, _NODE),
            alone=True,
        )
    for role in ("admin", "edit"):
        yield Case(
            name=f"an owner with the role {role} has an account of its own namespace promoted",
            section="B9",
            who="mallory",
            attack=promoted(role),
            alone=True,
            quick=role == "admin",
        )
