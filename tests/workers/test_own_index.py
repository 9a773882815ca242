"""Objects that Tether made stay known by their uid, whatever is done to their marks, until they are gone."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from eventcore.keys import ObjectKey
from eventcore.objects import Meta
from workers.own_index import OwnIndex
from workers.ownership import Account

OIL, GAS = Account("oil-system", "deployer"), Account("gas-system", "deployer")
KEY = ObjectKey("Secret", "oil-system", "deployer-kubeconfig")


def meta(account: Account | None, uid: str = "u1") -> Meta:
    annotations = {"capsule-tether.io/account": str(account)} if account else {}
    labels = {"capsule-tether.io/component": "kubeconfig"}
    return Meta(name=KEY.name, namespace=KEY.namespace, uid=uid, labels=labels, annotations=annotations)


def test_one_whose_marks_are_taken_off_is_looked_for_until_it_is_found_gone() -> None:
    index = OwnIndex()
    index.apply(KEY, None, meta(OIL))
    assert index.lost(OIL) == []

    index.apply(KEY, meta(OIL), None, meta(OIL))

    assert (index.of(OIL), index.lost(OIL, "kubeconfig"), index.lost(OIL, "rbac")) == ([], [KEY], [])
    assert (index.made_for(KEY, "u1"), index.made_for(KEY, "u2")) == (OIL, None)
    assert index.losers() == {OIL}

    index.forget(KEY)

    assert (index.lost(OIL), index.losers(), index.made_for(KEY, "u1")) == ([], set(), None)


def test_one_that_says_it_was_made_for_another_is_still_the_first_ones() -> None:
    index = OwnIndex()
    index.apply(KEY, None, meta(OIL))

    index.apply(KEY, meta(OIL), meta(GAS))

    assert index.made_for(KEY, "u1") == OIL
    assert index.lost(OIL) == [KEY]
    assert [one.key for one in index.of(GAS)] == [KEY]

    # And one that was made anew is another one.
    index.apply(KEY, meta(GAS), meta(GAS, "u2"))
    assert (index.made_for(KEY, "u2"), index.lost(OIL)) == (GAS, [])


def test_a_tombstone_that_is_all_that_is_left_tells_it_too() -> None:
    index = OwnIndex()

    index.apply(KEY, None, None, meta(OIL))

    assert (index.lost(OIL), index.made_for(KEY, "u1")) == ([KEY], OIL)


def test_a_namespace_that_leaves_is_remembered_for_what_lay_there_then_and_for_nothing_that_came_later() -> None:
    index = OwnIndex()
    held = msgspec.structs.replace(meta(OIL), annotations=meta(OIL).annotations | {"capsule-tether.io/generation": "7"})
    index.apply(KEY, None, held)
    assert index.held(KEY, "u1") == 0

    index.leave(KEY.namespace, [OIL])

    # Whatever is done to it there, it held that generation; one that is made there afterwards never did.
    index.apply(KEY, held, None, held)
    assert (index.held(KEY, "u1"), index.held(KEY, "u2")) == (7, 0)
    index.apply(KEY, None, msgspec.structs.replace(held, uid="u2"))
    assert (index.held(KEY, "u1"), index.held(KEY, "u2")) == (0, 0)


def test_a_namespace_holds_copies_for_as_long_as_one_of_them_is_there() -> None:
    index, other = OwnIndex(), ObjectKey("Secret", KEY.namespace, "deployer-other")
    for key in (KEY, other):
        index.apply(key, None, meta(OIL))
    index.apply(KEY, meta(OIL), meta(OIL))

    index.apply(KEY, meta(OIL), None)
    assert (index.copies_in(KEY.namespace), index.at_home_in("oil-system")) == ({OIL}, {OIL})

    index.apply(other, meta(OIL), None)
    assert (index.copies_in(KEY.namespace), index.at_home_in("oil-system"), index.has(OIL)) == (set(), set(), False)


STATES = st.sampled_from([None, *((account, uid) for account in (OIL, GAS, None) for uid in ("u1", "u2"))])


@given(st.lists(st.tuples(STATES, st.booleans()), max_size=12))
def test_nothing_is_kept_of_more_objects_than_there_are(
    steps: list[tuple[tuple[Account | None, str] | None, bool]],
) -> None:
    index, old = OwnIndex(), None
    for state, buried in steps:
        new = meta(*state) if state else None
        gone = old if state is None and buried else None
        index.apply(KEY, old, new, gone)
        old = new
        found = [account for account in (OIL, GAS) if KEY in index.lost(account)]
        assert len(found) <= 1
        shown = [account for account in (OIL, GAS) if index.has(account)]
        assert not set(found) & set(shown)
        if new is not None and state is not None and state[0] is not None:
            assert index.made_for(KEY, new.uid) is not None
