"""The plan of a migration: every step in an order in which no client ever holds a token that is gone."""

from __future__ import annotations

import base64

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from eventcore.objects import Meta
from tether.cluster_lists import LEGACY_TYPE, Secret
from tether.migrate_look import token_state, token_subject
from tether.migrate_plan import Found, Holder, Resource, Step, bridge_name, bridge_target, plan, token_target
from workers.desired import Target
from workers.ownership import Account

ACCOUNT = Account("oil-system", "gitops-reconciler")
CONFIG = "gitops-reconciler-kubeconfig"
OLD, BRIDGE, NEW = "old", "bridge", "new"


def holder(namespace: str = "oil-system", *, token: str = OLD, ours: bool = False, immutable: bool = False) -> Holder:
    return Holder(namespace=namespace, name=CONFIG, token=token, ours=ours, immutable=immutable)


def of_addon(**changes: object) -> Found:
    """An account as the addon leaves it."""
    base = Found(
        account=ACCOUNT,
        tenants=("oil",),
        resources=(Resource(name="oil-gitops-reconciler-kubeconfig", prunes=True),),
        member_of="oil",
        static=OLD,
        token="static",
        rights=(Target("RoleBinding", "oil-system", "gitops-reconciler"),),
        holders=(holder(), holder("oil-production")),
    )
    return msgspec.structs.replace(base, **changes)


def verbs(steps: list[Step]) -> list[str]:
    return [step.verb for step in steps]


def after(found: Found, step: Step) -> Found:
    """What a cluster with Tether looks like once a step was done."""
    change = msgspec.structs.replace

    def holders(**fields: object) -> tuple[Holder, ...]:
        mine = step.target
        return tuple(change(h, **fields) if mine is None or h.target == mine else h for h in found.holders)

    others = tuple(r for r in found.resources if r.name != step.object.partition("/")[2])
    places = tuple(h.namespace for h in found.holders)
    changes: dict[str, dict[str, object]] = {
        "keep": {"resources": tuple(change(r, prunes=False) for r in found.resources)},
        "unreplicate": {"resources": others},
        "leave": {"member_of": ""},
        "bridge": {"bridge": "ready"},
        "move": {"holders": holders(token=BRIDGE)},
        "adopt": {"holders": holders(ours=True), "rights": tuple(r for r in found.rights if r != step.target)},
        "replace": {"token": "tether", "static": "", "current": NEW, "missing": places},
        "distribute": {"holders": holders(token=NEW), "missing": ()},
        "remove": {"bridge": "absent"},
    }
    return change(found, **changes[step.verb])


def test_an_account_of_the_addon_gets_every_step_in_order() -> None:
    assert verbs(plan(of_addon())) == [
        "keep",
        "unreplicate",
        "leave",
        "bridge",
        "move",
        "move",
        "adopt",
        "adopt",
        "adopt",
        "replace",
        "distribute",
        "remove",
    ]


def test_an_account_that_tether_made_gets_no_step() -> None:
    found = Found(
        account=ACCOUNT, tenants=("oil",), token="tether", current=NEW, holders=(holder(token=NEW, ours=True),)
    )
    assert plan(found) == []


def test_a_kubeconfig_that_is_only_late_is_no_matter_for_a_migration() -> None:
    found = Found(account=ACCOUNT, tenants=("oil",), token="tether", current=NEW, missing=("oil-production",))
    assert plan(found) == []


def test_rights_that_came_from_git_alone_are_no_matter_for_a_migration() -> None:
    rights = (Target("RoleBinding", "oil-system", "gitops-reconciler"),)
    assert plan(Found(account=ACCOUNT, tenants=("oil",), token="tether", current=NEW, rights=rights)) == []


def test_a_holder_that_nobody_can_change_keeps_the_token_alive() -> None:
    ci = Target("Secret", "oil-production", "ci")
    steps = plan(of_addon(elsewhere=(ci,)))
    assert [step.object for step in steps if step.verb == "blocked"] == [str(ci)]
    assert "replace" not in verbs(steps)
    assert "remove" not in verbs(steps)


def test_an_immutable_kubeconfig_keeps_the_token_alive() -> None:
    steps = plan(of_addon(holders=(holder(), holder("oil-production", immutable=True))))
    assert [step.object for step in steps if step.verb == "blocked"] == [f"Secret/oil-production/{CONFIG}"]
    assert "replace" not in verbs(steps)


def test_a_home_that_makes_the_account_a_user_of_capsule_stays_a_member() -> None:
    steps = plan(of_addon(capsule_user=False))
    (blocked,) = [step for step in steps if step.verb == "blocked"]
    assert "system:serviceaccounts:oil-system" in blocked.text
    assert "leave" not in verbs(steps)
    assert "replace" in verbs(steps)


def test_a_token_secret_of_somebody_else_is_named_and_left() -> None:
    steps = plan(of_addon(token="foreign", static=""))
    assert steps[-1].verb == "blocked"
    assert steps[-1].object == str(token_target(ACCOUNT))


def test_a_kubeconfig_outside_of_the_tenant_is_never_handed_over() -> None:
    stray = msgspec.structs.replace(holder("elsewhere"), proven=False)
    steps = plan(of_addon(holders=(holder(), stray)))
    assert not [step for step in steps if step.target == stray.target]


found_states = st.builds(
    of_addon,
    resources=st.lists(
        st.builds(Resource, name=st.sampled_from(["a", "b"]), prunes=st.booleans()),
        max_size=2,
        unique_by=lambda r: r.name,
    ).map(tuple),
    member_of=st.sampled_from(["", "oil"]),
    bridge=st.sampled_from(["absent", "empty", "ready"]),
    holders=st.lists(
        st.builds(
            holder,
            st.sampled_from(["oil-system", "oil-a", "oil-b", "oil-c"]),
            token=st.sampled_from([OLD, BRIDGE, "dead", ""]),
            ours=st.booleans(),
        ),
        max_size=4,
        unique_by=lambda h: h.namespace,
    ).map(tuple),
)


@given(found_states)
def test_wherever_it_was_interrupted_it_ends_with_nothing_left(found: Found) -> None:
    for _ in range(40):
        steps = plan(found)
        if not steps:
            break
        found = after(found, steps[0])
    assert plan(found) == []
    assert found.token == "tether"
    assert found.bridge == "absent"
    assert not found.resources


@given(found_states)
def test_no_token_goes_while_a_kubeconfig_holds_it(found: Found) -> None:
    for step in plan(found):
        if step.verb == "replace":
            assert not [h for h in found.holders if h.token == OLD]
        if step.verb == "remove":
            assert not [h for h in found.holders if h.token == BRIDGE]
        if step.verb == "unreplicate":
            name = step.object.partition("/")[2]
            assert not [r for r in found.resources if r.name == name and r.prunes]
        found = after(found, step)


@given(st.from_regex(r"[a-z]([a-z0-9-]{0,60}[a-z0-9])?", fullmatch=True), st.text("ab.", min_size=1, max_size=260))
def test_the_name_between_is_short_enough_and_never_that_of_tethers_own(namespace: str, name: str) -> None:
    account = Account(namespace, name)
    assert len(bridge_name(account)) <= 253
    assert bridge_target(account) != token_target(account)


def secret(type_: str, annotations: dict[str, str], labels: dict[str, str] | None = None) -> Secret:
    metadata = Meta(
        name="gitops-reconciler-token", namespace="oil-system", annotations=annotations, labels=labels or {}
    )
    return Secret(metadata=metadata, type=type_)


def test_a_token_secret_is_told_by_its_marks_and_its_type() -> None:
    name = {"kubernetes.io/service-account.name": "gitops-reconciler"}
    assert token_state(None, ACCOUNT) == "absent"
    assert token_state(secret(LEGACY_TYPE, name), ACCOUNT) == "static"
    assert token_state(secret(LEGACY_TYPE, {"kubernetes.io/service-account.name": "x"}), ACCOUNT) == "foreign"
    assert token_state(secret("Opaque", {}), ACCOUNT) == "foreign"
    handed_over = secret(LEGACY_TYPE, name, {"capsule-tether.io/component": "token"})
    assert token_state(handed_over, ACCOUNT) == "static"  # Tether has not replaced it yet
    assert token_state(secret("Opaque", {}, {"capsule-tether.io/component": "token"}), ACCOUNT) == "tether"


def test_a_token_says_whose_it_is() -> None:
    claims = base64.urlsafe_b64encode(b'{"sub":"system:serviceaccount:oil-system:x"}').decode().rstrip("=")
    assert token_subject(f"header.{claims}.signature") == "system:serviceaccount:oil-system:x"


@given(st.text() | st.text().map(lambda text: f"a.{text}.c"))
def test_what_is_no_token_is_nobodys(text: str) -> None:
    assert token_subject(text) == ""


def test_a_secret_shows_none_of_its_content() -> None:
    metadata = Meta(name="a", namespace="b")
    assert "aGlkZGVu" not in repr(Secret(metadata=metadata, data={"token": "aGlkZGVu"}))
