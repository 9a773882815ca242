"""Tenants write ProxySettings, each subject a grant: those of one namespace count up to a number, in one order."""

from __future__ import annotations

from typing import Any

from eventcore.keys import ObjectKey, key
from tests.workers.test_routing import GRACE, NOW, Cluster, guide
from workers import reflection
from workers.access import subject_grant
from workers.ownership import Owner
from workers.proxy_settings import MOST_SUBJECTS
from workers.setting_status import status_key, status_of

NAMESPACE = "oil-production"


def naming(first: int, count: int) -> dict[str, Any]:
    """Return a setting that names so many users, by their numbers."""
    return {"spec": {"subjects": [{"kind": "User", "name": f"user-{first + one:05}"} for one in range(count)]}}


def counts(cluster: Cluster, number: int) -> bool:
    owner = Owner("User", f"user-{number:05}")
    return subject_grant(cluster.relations, owner, NOW, GRACE)[0] is not None


def ready(cluster: Cluster, name: str) -> tuple[str, str]:
    setting = cluster.relations.settings.all[ObjectKey("ProxySetting", NAMESPACE, name)]
    (condition,) = status_of(setting, cluster.relations, None, gate=False).conditions
    return condition.status, condition.reason


def test_of_too_many_subjects_the_first_count_and_nobody_is_asked_to_compile_the_rest() -> None:
    cluster = guide()

    routes = cluster.put("ProxySetting", NAMESPACE, "s", naming(0, 5 * MOST_SUBJECTS))

    assert len(routes) == MOST_SUBJECTS + 1  # and its status
    assert counts(cluster, 0)
    assert counts(cluster, MOST_SUBJECTS - 1)
    assert not counts(cluster, MOST_SUBJECTS)
    assert ready(cluster, "s") == ("False", "TooManySubjects")


def test_many_settings_of_a_namespace_count_no_more_than_one() -> None:
    cluster = guide()
    for number in range(10):
        cluster.put("ProxySetting", NAMESPACE, f"s{number}", naming(number * 100, 100))

    assert len(cluster.relations.settings.subjects.subjects_in(NAMESPACE)) == MOST_SUBJECTS
    assert ready(cluster, "s0") == ("True", "Succeeded")
    assert ready(cluster, "s2") == ready(cluster, "s9") == ("False", "TooManySubjects")


def test_one_that_goes_or_comes_decides_about_the_next_in_whatever_order_they_came() -> None:
    # given two settings that have no room together
    cluster = guide()
    late = ("access", status_key(ObjectKey("ProxySetting", NAMESPACE, "b")))
    cluster.put("ProxySetting", NAMESPACE, "b", naming(1000, MOST_SUBJECTS))
    assert counts(cluster, 1000)

    # when the one that comes first by its name is made, then the other counts no more, and all of it is compiled again
    routes = cluster.put("ProxySetting", NAMESPACE, "a", naming(0, MOST_SUBJECTS))
    assert (counts(cluster, 0), counts(cluster, 1000)) == (True, False)
    assert {late, ("access", key("subject", "User", "user-01000"))} <= routes

    # when it goes, then the other counts again
    routes = cluster.put("ProxySetting", NAMESPACE, "a", None)
    assert (counts(cluster, 0), counts(cluster, 1000)) == (False, True)
    assert {late, ("access", key("subject", "User", "user-01000"))} <= routes
    assert ready(cluster, "b") == ("True", "Succeeded")


def test_bindings_show_a_namespace_to_so_many_subjects_and_a_namespace_with_more_is_known() -> None:
    cluster = guide()
    users = [{"kind": "User", "name": f"user-{one:05}"} for one in range(2 * reflection.MOST_SUBJECTS)]

    # given one that names somebody, and then one before it that names more than count
    cluster.put("AnyRoleBinding", NAMESPACE, "b", {"subjects": [{"kind": "User", "name": "dana"}]})
    routes = cluster.put("AnyRoleBinding", NAMESPACE, "a", {"subjects": users})

    # then the first of them count, and whom they displace is compiled again
    subjects = cluster.relations.bindings.subjects
    assert len(subjects.all()) == reflection.MOST_SUBJECTS
    assert len(routes) == reflection.MOST_SUBJECTS + 1
    assert ("access", key("subject", "User", "dana")) in routes
    assert subjects.cut() == [NAMESPACE]

    # when it names fewer, then all count
    routes = cluster.put("AnyRoleBinding", NAMESPACE, "a", {"subjects": users[:5]})
    assert ("access", key("subject", "User", "dana")) in routes
    assert subjects.cut() == []

    # when it names as many as count, then there is no room for the other, which is told too
    cluster.put("AnyRoleBinding", NAMESPACE, "a", {"subjects": users[: reflection.MOST_SUBJECTS]})
    assert subjects.is_cut(NAMESPACE)
    cluster.put("AnyRoleBinding", NAMESPACE, "b", None)
    assert not subjects.is_cut(NAMESPACE)


def test_what_an_administrator_writes_for_all_of_the_cluster_counts_whole() -> None:
    cluster = guide()
    users = [{"kind": "User", "name": f"user-{one:05}"} for one in range(2 * MOST_SUBJECTS)]

    routes = cluster.put("GlobalProxySettings", "", "g", {"spec": {"rules": [{"subjects": users}]}})

    assert len(routes) == 2 * MOST_SUBJECTS + 1
