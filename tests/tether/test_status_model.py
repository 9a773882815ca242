"""What `tether status` puts together: accounts, tenants, what waits, what failed, from what the bus says."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from rich.console import Console

from eventcore.bus import BusMessage
from eventcore.events import AuditRecord, DeadLetter, Mark, WorkRequest, encode_body, object_event
from eventcore.grants import AccountGrant, Grant, TenantGrant
from eventcore.keys import Key, ObjectKey, key, mark_subject, timer_subject, work_subject
from eventcore.views import ObjectsView
from tether.status_model import Queues, Status, assemble, of_tenant, waiting_of
from tether.status_view import render
from workers.desired import Target, Token, TokenMode, kubeconfig_secret, token_secret
from workers.ownership import Account
from workers.relations import Relations

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
OIL, GAS = Account("oil-system", "gitops-reconciler"), Account("gas-system", "gitops-reconciler")


class Stage:
    """OBJECTS as a watcher would have filled it."""

    def __init__(self) -> None:
        self.view = ObjectsView()
        self.relations = Relations()
        self.sequence = 0

    def put(self, kind: str, body: dict[str, Any]) -> None:
        self.sequence += 1
        metadata = body["metadata"]
        target = ObjectKey(kind, metadata.get("namespace", ""), metadata["name"])
        event = object_event("c", target, uid=metadata.get("uid", "u"), resource_version=str(self.sequence), time=NOW)
        self._apply(target.subject(), event.headers(), msgspec.json.encode(body))

    def mark(self, kind: str, age: float) -> None:
        mark = Mark(kind=kind, resource_version="1", time=NOW - timedelta(seconds=age))
        self._apply(mark_subject(kind), {}, encode_body(mark))

    def _apply(self, subject: str, headers: dict[str, str], data: bytes) -> None:
        message = BusMessage(subject=subject, sequence=self.sequence, time=NOW, headers=headers, data=data)
        change = self.view.apply(message)
        if change is not None:
            self.relations.apply(change)

    def tenant(self, account: Account, name: str, *namespaces: str, mode: TokenMode = "bound") -> None:
        """An enabled account, its Tenant, its namespaces, and a first token, which is everywhere but in the last."""
        owner = {"kind": "ServiceAccount", "name": account.username}
        self.put("Tenant", {"metadata": {"name": name, "uid": name}, "spec": {"owners": [owner]}})
        annotations = {"capsule.addon.fluxcd/enabled": "true"}
        metadata = {"name": account.name, "namespace": account.namespace, "uid": "a", "annotations": annotations}
        self.put("ServiceAccount", {"metadata": metadata})
        self.put("Namespace", {"metadata": {"name": account.namespace}})
        reference = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": name, "uid": name}
        for namespace in namespaces:
            labels = {"capsule.clastix.io/tenant": name}
            self.put("Namespace", {"metadata": {"name": namespace, "labels": labels, "ownerReferences": [reference]}})
        token = Token(
            generation=4,
            binding="b",
            binding_uid="b",
            account_uid="a",
            minted=NOW,
            expires=NOW + timedelta(hours=5),
            written=NOW,
            retire=NOW,
            digest="d",
            mode=mode,
        )
        self.put("Secret", {"metadata": token_secret(account, name, token, "x").body()["metadata"]})
        for at, namespace in enumerate((account.namespace, *namespaces)):
            generation = 3 if namespaces and at == len(namespaces) else 4
            target = Target("Secret", namespace, f"{account.name}-kubeconfig")
            manifest = kubeconfig_secret(account, name, target, config=b"", generation=generation)
            self.put("Secret", {"metadata": manifest.body()["metadata"]})


def work(subject: str, request: WorkRequest, *, at: datetime | None = None, sequence: int = 1) -> BusMessage:
    headers = {"Nats-Schedule": f"@at {at.isoformat()}"} if at else {}
    data = encode_body(request)
    return BusMessage(subject=subject, sequence=sequence, time=NOW, headers=headers, data=data)


def body_of(body: AuditRecord | DeadLetter) -> BusMessage:
    return BusMessage(subject="s", sequence=1, time=NOW, headers={}, data=encode_body(body))


def whole(stage: Stage, *, watched: tuple[str, ...] = (), **queues: Any) -> Status:
    grants: list[Grant] = [
        TenantGrant(name="oil", uid="oil", namespaces=("oil-a", "oil-b")),
        AccountGrant(namespace=OIL.namespace, name=OIL.name, uid="a"),
    ]
    return assemble(stage.view, stage.relations, grants, Queues(**queues), NOW, watched=watched)


def two_tenants() -> Stage:
    stage = Stage()
    stage.tenant(OIL, "oil", "oil-a", "oil-b")
    stage.tenant(GAS, "gas")
    return stage


def test_an_account_shows_its_token_and_the_namespaces_that_lag_behind() -> None:
    oil, gas = whole(two_tenants()).accounts[1], whole(two_tenants()).accounts[0]
    assert (oil.account, oil.tenants, oil.generation) == ("oil-system/gitops-reconciler", ("oil",), 4)
    assert oil.expires == NOW + timedelta(hours=5)
    assert (oil.current, oil.wanted, oil.behind) == (2, 3, ("oil-b",))
    assert oil.granted
    assert (gas.current, gas.wanted, gas.behind) == (1, 1, ())
    assert not gas.granted


def test_an_account_that_lives_in_another_tenant_is_wanted_nowhere_and_told_so() -> None:
    stage = two_tenants()
    reference = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": "gas", "uid": "gas"}
    labels = {"capsule.clastix.io/tenant": "gas"}
    stage.put("Namespace", {"metadata": {"name": "oil-system", "labels": labels, "ownerReferences": [reference]}})
    oil = whole(stage).accounts[1]
    assert (oil.account, oil.tenants, oil.home_of, oil.wanted) == ("oil-system/gitops-reconciler", (), "gas", 0)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(whole(stage)))
    assert "lives in gas" in console.export_text()


def test_a_static_token_never_ends() -> None:
    stage = Stage()
    stage.tenant(OIL, "oil", mode="static")
    (account,) = whole(stage).accounts
    assert (account.mode, account.expires) == ("static", None)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(whole(stage)))
    assert "never, static" in console.export_text()


def test_a_tenant_shows_its_namespaces_and_whether_the_proxy_knows_them() -> None:
    stage = two_tenants()
    assert [(t.name, t.namespaces, t.granted) for t in whole(stage).tenants] == [
        ("gas", (), False),
        ("oil", ("oil-a", "oil-b"), True),
    ]
    reference = {"apiVersion": "capsule.clastix.io/v1beta2", "kind": "Tenant", "name": "oil", "uid": "oil"}
    labels = {"capsule.clastix.io/tenant": "oil"}
    stage.put("Namespace", {"metadata": {"name": "oil-c", "labels": labels, "ownerReferences": [reference]}})
    assert not whole(stage).tenants[1].granted


def test_an_account_that_was_disabled_stays_in_sight_while_it_has_anything() -> None:
    stage = two_tenants()
    stage.put("ServiceAccount", {"metadata": {"name": OIL.name, "namespace": OIL.namespace, "uid": "a"}})
    (oil,) = [one for one in whole(stage).accounts if one.account == str(OIL)]
    assert not oil.enabled
    assert oil.tenants == ()
    assert oil.wanted == 0


def test_freshness_is_the_age_of_the_mark() -> None:
    stage = two_tenants()
    stage.mark("Namespace", 2.0)
    stage.mark("Secret", 100.0)
    found = whole(stage, watched=("Namespace", "Secret")).kinds
    assert {kind.kind: (kind.age, kind.objects) for kind in found} == {"Namespace": (2.0, 4), "Secret": (100.0, 6)}


def test_a_kind_that_is_switched_off_is_not_called_stale() -> None:
    stage = two_tenants()
    stage.mark("Namespace", 100.0)
    stage.mark("AnyRole", 100.0)
    stage.mark("AnyRoleBinding", 2.0)  # the watchers have another setting than this command line
    assert [kind.kind for kind in whole(stage, watched=("Namespace",)).kinds] == ["AnyRoleBinding", "Namespace"]


def test_requests_wait_for_their_turn_or_for_their_time() -> None:
    due = NOW + timedelta(minutes=7)
    messages = (
        work(timer_subject("token", OIL.key()), WorkRequest(reason="timer"), at=due),
        work(timer_subject("kubeconfig", key("a", "b", "c")), WorkRequest(reason="retry", attempt=3), at=NOW),
        work(work_subject("rbac", GAS.key()), WorkRequest(reason="event", cause=1)),
        work(work_subject("rbac", OIL.key()), WorkRequest(reason="event", cause=1)),
        work("work.broken", WorkRequest(reason="event")),
    )
    status = whole(two_tenants(), work=messages, in_hand={"rbac": 1}, listening=frozenset({"rbac"}))
    assert [(one.worker, one.reason, one.attempt, one.due) for one in status.waiting[2:]] == [
        ("rbac", "event", 0, None),
        ("token", "timer", 0, due),
    ]
    lanes = {lane.worker: (lane.pending, lane.in_hand, lane.scheduled, lane.listening) for lane in status.workers}
    assert lanes["rbac"] == (1, 1, 0, True)
    assert lanes["token"] == (0, 0, 1, False)


def test_what_failed_is_told_the_newest_first_and_what_went_well_is_not() -> None:
    letter = DeadLetter(time=NOW - timedelta(hours=1), worker="rbac", key=str(OIL.key()), reason="why", subject="s")
    refused = AuditRecord(
        time=NOW, component="token", action="refused", outcome="refused", tenant="oil", account=str(OIL), message="m"
    )
    fine = AuditRecord(time=NOW, component="token", action="minted", outcome="done", tenant="oil")
    status = whole(two_tenants(), dead=(body_of(letter),), audit=(body_of(refused), body_of(fine)))
    assert [(one.what, one.worker, one.account, one.message) for one in status.failures] == [
        ("refused", "token", str(OIL), "m"),
        ("dead letter", "rbac", str(OIL), "why"),
    ]


def test_one_tenant_is_shown_without_the_others() -> None:
    def letter(target: Key) -> BusMessage:
        return body_of(DeadLetter(time=NOW, worker="rbac", key=str(target), reason="why", subject="s"))

    keys = [
        OIL.key(),
        key(*OIL.key().parts, "oil-a"),
        key("account", *OIL.key().parts),
        key("tenant", "oil"),
        key("subject", "ServiceAccount", OIL.username),
    ]
    foreign = [GAS.key(), key("tenant", "gas"), key("subject", "ServiceAccount", GAS.username), key("config")]
    messages = [work(work_subject("access", one), WorkRequest(reason="event")) for one in (*keys, *foreign)]
    status = whole(two_tenants(), work=tuple(messages), dead=(letter(OIL.key()), letter(GAS.key())))
    one = of_tenant(status, "oil")
    assert one is not None
    assert [tenant.name for tenant in one.tenants] == ["oil"]
    assert [account.account for account in one.accounts] == [str(OIL)]
    assert {waiting.key for waiting in one.waiting} == {str(wanted) for wanted in keys}
    assert [failure.account for failure in one.failures] == [str(OIL)]
    assert of_tenant(status, "nobody") is None


def test_a_request_that_cannot_be_understood_is_left_out() -> None:
    assert waiting_of(BusMessage(subject="work.rbac.1.a", sequence=1, time=NOW, headers={}, data=b"{")) is None


def test_the_tables_say_all_of_it() -> None:
    stage = two_tenants()
    stage.mark("Namespace", 4000.0)
    refused = AuditRecord(time=NOW, component="token", action="refused", outcome="refused", tenant="oil", message="why")
    retry = WorkRequest(reason="retry", attempt=2)
    messages = (work(timer_subject("token", OIL.key()), retry, at=NOW + timedelta(seconds=90)),)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(whole(stage, watched=("Namespace",), work=messages, audit=(body_of(refused),))))
    text = console.export_text()
    for words in ("1h6m ago", "nobody runs it", "2 of 3; not in oil-b", "in 5h", "retry after 2 failures", "in 1m30s"):
        assert words in text, text
    assert "refused" in text
    assert "why" in text
