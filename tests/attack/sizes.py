"""Objects over what a message of NATS holds: a Tenant that grew, and whose owner is to be taken away all the same.

An administrator's mistake, or Capsule's own status in a tenant of thousands of namespaces. What cannot be published
whole is published as what is read of it, or grants nothing; in no case does the old state go on counting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from tests.attack.cases import Attack, Case, Ground
from tests.attack.victim import How, StuckError, Victim, ignore_missing
from tests.behaviour.conftest import ACCOUNT, Object, Tenancy, path

_MIB: Final = 2**20
_GRANTED_SECONDS: Final = 3.0
_WORD: Final = "a" * 60


def _names(size: int, **more: Any) -> Object:
    return {"allowed": [f"{_WORD}-{number}" for number in range(size // 72)], **more}


SHAPES: Final[dict[str, Any]] = {
    "classes that are allowed": lambda size: {"storageClasses": _names(size)},
    "priorities that are allowed": lambda size: {"priorityClasses": _names(size)},
    "registries that are allowed": lambda size: {"containerRegistries": _names(size)},
    "host names that are allowed": lambda size: {"ingressOptions": {"allowedHostnames": _names(size)}},
    "owners": lambda size: {
        "owners": [{"kind": "User", "name": f"{_WORD * 15}-{number}"} for number in range(size // 935)]
    },
}
SIZES: Final = {"0.9 MiB": int(0.9 * _MIB), "1.2 MiB": int(1.2 * _MIB), "1.4 MiB": int(1.4 * _MIB)}


def grown(shape: Any, size: int, how: How) -> Attack:
    """A tenant lives; its Tenant grows, and then its owner is taken away: it ends as soon as any other."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        victim = Victim(Tenancy(stage.cluster, stage.admin))
        ground.later(victim.clean)
        try:
            async with victim.onboarded() as door:
                await victim.work(door)
                spec = shape(size)
                if "owners" in spec:
                    spec["owners"].append({"kind": "ServiceAccount", "name": victim.tenancy.user})
                await stage.admin.merge_patch(path("Tenant", "", victim.tenancy.name), {"spec": spec})
                await victim.revoke(how)
        except StuckError as error:
            ground.found.stopped.append(str(error))
        ground.found.add(victim.found)
        if "owners" not in shape(0):  # a grant of each of a thousand owners is taken back with it
            ground.took |= victim.revoked
        yield

    return attack


def born(shape: Any, size: int, *, counts: bool) -> Attack:
    """A Tenant that is too large from its beginning; where ``counts``, what is too large in it is nothing to Tether."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        tenancy = Tenancy(stage.cluster, stage.admin)
        victim = Victim(tenancy, spoil={"spec": shape(size)})
        if counts:
            await victim.live("owner")
            ground.found.add(victim.found)
            ground.took |= victim.revoked
        else:
            ground.later(victim.clean)
            ground.later(lambda: ignore_missing(stage.admin.delete(path("Tenant", "", tenancy.name))))
            async with asyncio.TaskGroup() as tasks:
                life = tasks.create_task(_until_granted(victim))
                end = time.monotonic() + _GRANTED_SECONDS
                while not life.done() and time.monotonic() < end:
                    await asyncio.sleep(0.1)
                if life.done():
                    ground.notes.append("it is granted what it should have")
                life.cancel()
        yield

    return attack


async def _until_granted(victim: Victim) -> None:
    try:
        async with victim.onboarded():
            return
    except StuckError:
        return


def large(kind: str, size: int, *, count: int = 1) -> Attack:
    """Secrets and ConfigMaps of the developer that are as large as the API server takes."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        client = await stage.door("developer", direct=True)
        collection = path(kind, stage.field)
        labels = {"attack": ground.mark, "capsule-tether.io/component": "token"}
        marks = {"capsule-tether.io/account": f"{stage.victim.home}/{ACCOUNT}", "capsule-tether.io/generation": "2"}
        field = "stringData" if kind == "Secret" else "data"
        ground.later(lambda: stage.admin.delete(f"{collection}?labelSelector=attack%3D{ground.mark}"))
        for number in range(count):
            metadata = {"name": f"{ground.mark}-{number}", "labels": labels, "annotations": marks}
            if field == "stringData" and number % 2:
                metadata["annotations"] = marks | {"filler": "a" * 200_000}
            answer = await client.post(collection, {"metadata": metadata, field: {"value": "a" * size}})
            if answer.status != 201:
                ground.notes.append(f"refused by the API server: {answer.status}")
        yield

    return attack


def cases() -> Iterator[Case]:
    """All cases of this room."""
    for what, shape in SHAPES.items():
        for much, size in SIZES.items():
            hows: tuple[How, ...] = ("owner", "annotation") if much == "1.2 MiB" else ("owner",)
            for how in hows:
                yield Case(
                    name=f"a Tenant grows to {much} by {what}, and loses the {how} afterwards",
                    section="A5",
                    who="administrator",
                    attack=grown(shape, size, how),
                    long=what == "owners",
                    alone=True,
                    quick=(much, how, what) == ("1.2 MiB", "owner", "classes that are allowed"),
                )
    for what in ("registries that are allowed", "host names that are allowed"):
        yield Case(
            name=f"a Tenant is made with 1.2 MiB of {what}, which are nothing to Tether",
            section="A5",
            who="administrator",
            attack=born(SHAPES[what], SIZES["1.2 MiB"], counts=True),
            alone=True,
        )
    yield Case(
        name="a Tenant is made with 1.2 MiB of classes that are allowed",
        section="A5",
        who="administrator",
        attack=born(SHAPES["classes that are allowed"], SIZES["1.2 MiB"], counts=False),
        alone=True,
    )
    for kind in ("Secret", "ConfigMap"):
        yield Case(
            name=f"a {kind} of 1,000,000 bytes",
            section="A5",
            who="developer",
            attack=large(kind, 1_000_000),
        )
    yield Case(
        name="30 Secrets with 200,000 bytes of annotations",
        section="A5",
        who="developer",
        attack=large("Secret", 1000, count=30),
    )
