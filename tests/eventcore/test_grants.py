"""A value that is empty, broken or at another key's place grants nothing."""

from __future__ import annotations

import pytest

from eventcore.grants import (
    AccountGrant,
    BoundSecret,
    CapsuleUserRef,
    ClusterRule,
    ConfigGrant,
    Grant,
    SelectorTerm,
    SubjectGrant,
    TenantGrant,
    decode_grant,
    encode_grant,
)

GRANTS: list[Grant] = [
    TenantGrant(name="oil", uid="u", namespaces=("oil-a", "oil-b")),
    SubjectGrant(
        subject_kind="ServiceAccount", name="system:serviceaccount:oil-system:gitops.reconciler", tenants=("oil",)
    ),
    SubjectGrant(
        subject_kind="Group",
        name="devs",
        rules=(
            ClusterRule(
                groups=("*",),
                resources=("clusterroles",),
                selector=(SelectorTerm(key="share", operator="In", values=("yes",)),),
                lists=False,
                tenant="oil",
            ),
        ),
    ),
    SubjectGrant(subject_kind="User", name="dana", reflected=("oil-a", "oil-b"), shared=("oil-a",)),
    AccountGrant(
        namespace="oil-system", name="r", uid="u", secrets=(BoundSecret(name="r-token-1", uid="s", generation=1),)
    ),
    ConfigGrant(users=(CapsuleUserRef(kind="Group", name="system:serviceaccounts:oil-system"),)),
]


@pytest.mark.parametrize("grant", GRANTS)
def test_a_grant_comes_back_at_its_own_key(grant: Grant) -> None:
    assert decode_grant(grant.key().token(), encode_grant(grant)) == grant


@pytest.mark.parametrize("grant", GRANTS)
def test_a_value_at_another_key_is_no_grant(grant: Grant) -> None:
    assert decode_grant("tenant.gas", encode_grant(grant)) is None


@pytest.mark.parametrize(
    "value", [b"", b"{", b"{}", b'{"kind":"tenant"}', b'{"kind":"other","name":"oil","uid":""}', b"\xff"]
)
def test_a_value_that_cannot_be_read_is_no_grant(value: bytes) -> None:
    assert decode_grant("tenant.oil", value) is None


def test_a_key_that_cannot_be_read_is_no_grant() -> None:
    assert decode_grant("tenant.o il", encode_grant(GRANTS[0])) is None
