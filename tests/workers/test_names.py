"""Every name that is made is one that Kubernetes takes, and no two accounts end up with the same."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from workers.names import (
    MAX_NAME,
    binding_name,
    cluster_role_name,
    hashed_kubeconfig_name,
    kubeconfig_name,
    role_binding_name,
    same_cluster_role,
    settled_cluster_role_name,
    token_name,
)
from workers.ownership import Account

SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LETTERS = "ab1"

labels = st.from_regex(r"[ab1]([-ab1]{0,8}[ab1])?", fullmatch=True)
names = st.one_of(
    labels,
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.integers(200, MAX_NAME).map(lambda size: "a" * size),
    st.integers(60, 120).map(lambda size: "a." * size + "b"),
)
accounts = st.builds(Account, labels, names)


@given(accounts, st.integers(1, 10**9))
def test_every_name_is_one_that_kubernetes_takes(account: Account, generation: int) -> None:
    made = [
        role_binding_name(account),
        cluster_role_name(account),
        settled_cluster_role_name(account, lambda _: True),
        token_name(account),
        binding_name(account, generation),
        kubeconfig_name(account),
        hashed_kubeconfig_name(account),
    ]

    for name in made:
        assert len(name) <= MAX_NAME
        assert SUBDOMAIN.fullmatch(name), name


@given(st.lists(st.builds(Account, labels, labels), unique=True, max_size=8))
def test_the_clusterroles_of_any_set_of_accounts_have_different_names(found: list[Account]) -> None:
    names = [settled_cluster_role_name(account, found.__contains__) for account in found]

    assert len(set(names)) == len(found)


@given(st.builds(Account, labels, labels), st.builds(Account, labels, labels))
def test_the_rivals_of_an_account_are_exactly_those_with_the_same_plain_name(one: Account, other: Account) -> None:
    rivals = other != one and cluster_role_name(one) == cluster_role_name(other)

    assert (other in set(same_cluster_role(one))) == rivals


def test_short_names_are_those_of_the_addon() -> None:
    account = Account("oil-system", "gitops-reconciler")

    assert role_binding_name(account) == "gitops-reconciler"
    assert settled_cluster_role_name(account, lambda _: False) == "oil-system-gitops-reconciler-impersonator"
    assert token_name(account) == "gitops-reconciler-token"
    assert kubeconfig_name(account) == "gitops-reconciler-kubeconfig"


@given(accounts, st.integers(1, 1000), st.integers(1, 1000))
def test_generations_have_names_of_their_own(account: Account, one: int, other: int) -> None:
    assert (binding_name(account, one) == binding_name(account, other)) == (one == other)
