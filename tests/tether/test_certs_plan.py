"""`tether certs` as it decides: nobody who trusted what was published is refused, whatever is asked for and when."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventcore.errors import StartError
from tether.certs_plan import (
    ANNOTATION_SWITCH,
    Options,
    Plan,
    Serving,
    Signing,
    check,
    plan,
    read_serving,
    read_signing,
    renewal,
    service_hosts,
    serving_secret,
    signing_secret,
)
from tether.certs_x509 import Pair, hosts_of, is_host, new_authority, new_serving, signed_by, usable
from workers.authority import Memory, certificates

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
HOSTS = service_hosts("capsule-proxy", "capsule-system", "cluster.local")
OPTIONS = Options(hosts=HOSTS, life=30 * DAY, ca_life=300 * DAY, overlap=5 * DAY)


def step(before: Plan | None, moment: dt.datetime, options: Options = OPTIONS) -> Plan:
    """Plan again from what the Secrets of the plan before say."""
    if before is None:
        return plan(Signing(), Serving(), options, moment)
    signing = read_signing(signing_secret(options, before.signing, None))
    serving = read_serving(serving_secret(options, before.serving, None))
    return plan(signing, serving, options, moment)


def rotate(options: Options = OPTIONS, **changes: Any) -> Options:
    return msgspec.structs.replace(options, rotate=True, **changes)


def verifies(trusted: tuple[str, ...], served: Pair | None) -> bool:
    assert served is not None
    return any(signed_by(served.leaf, Pair(one, "").leaf) for one in trusted)


def test_from_nothing_an_authority_and_a_certificate_of_all_names_are_made() -> None:
    made = step(None, START)

    assert made.serving.pair is not None
    assert made.signing.current is not None
    assert hosts_of(made.serving.pair.leaf) == set(HOSTS)
    assert made.serving.trusted == (made.signing.current.certificate,)
    assert verifies(made.serving.trusted, made.serving.pair)
    assert usable(made.serving.pair.certificate, made.serving.pair.key)
    assert [line.split(":")[0] for line in made.done] == [
        "authority made",
        "serving certificate made",
        "ca.crt holds 1 certificate",
    ]


def test_run_again_nothing_is_done_until_something_is_due() -> None:
    made = step(None, START)
    again = step(made, START + 10 * DAY)
    assert again == Plan(made.signing, made.serving)

    due = made.next_look
    assert START + 19 * DAY < due < START + 21 * DAY
    renewed = step(made, due)
    assert renewed.signing == made.signing
    assert renewed.serving.trusted == made.serving.trusted
    assert renewed.serving.pair != made.serving.pair
    assert renewed.serving.pair is not None
    assert renewal(renewed.serving.pair) > due


def test_a_new_authority_is_announced_and_signs_after_the_overlap() -> None:
    before = step(None, START)
    announced = step(before, START + DAY, rotate())
    assert announced.signing.current == before.signing.current
    assert announced.signing.switch_at == START + 6 * DAY
    assert announced.serving.pair == before.serving.pair  # whoever trusts the old one alone is still served
    assert len(announced.serving.trusted) == 2
    assert announced.serving.trusted[1:] == before.serving.trusted

    # a second wish changes nothing, and a shorter overlap hastens it
    assert step(announced, START + 2 * DAY, rotate()).signing == announced.signing
    hastened = step(announced, START + 2 * DAY, rotate(overlap=DAY))
    assert hastened.signing.switch_at == START + 3 * DAY

    switched = step(announced, START + 6 * DAY)
    assert switched.signing == Signing(announced.signing.coming)
    assert switched.serving.trusted == announced.serving.trusted[:1]
    assert verifies(switched.serving.trusted, switched.serving.pair)
    assert verifies(announced.serving.trusted, switched.serving.pair)
    assert not verifies(before.serving.trusted, switched.serving.pair)


def test_without_overlap_a_stolen_authority_is_replaced_at_once() -> None:
    before = step(None, START)
    after = step(before, START + DAY, rotate(overlap=dt.timedelta()))

    assert after.signing.coming is None
    assert after.signing.current != before.signing.current
    assert len(after.serving.trusted) == 1
    assert not verifies(before.serving.trusted, after.serving.pair)


def test_an_authority_that_ends_is_replaced_in_time_by_itself() -> None:
    before = step(None, START)
    assert before.signing.current is not None
    due = renewal(before.signing.current)

    announced = step(before, due)

    assert announced.signing.coming is not None
    assert due + 5 * DAY < before.signing.current.expires
    assert "authority made: the one before ends" in announced.done


def test_what_something_else_made_is_served_through_the_overlap_although_its_authority_is_not_here() -> None:
    foreign = new_authority("other", 300 * DAY, START)
    served = new_serving(foreign, ["capsule-proxy"], 30 * DAY, START)
    found = Serving(served, (foreign.certificate,))

    announced = plan(Signing(), found, OPTIONS, START + DAY)
    assert announced.serving.pair == served
    assert announced.serving.trusted[1:] == (foreign.certificate,)
    assert announced.signing.current is None

    switched = step(announced, START + 6 * DAY)
    assert switched.serving.pair is not None
    assert hosts_of(switched.serving.pair.leaf) == set(HOSTS)
    assert verifies(announced.serving.trusted, switched.serving.pair)


@pytest.mark.parametrize("lost", ["authority", "serving", "both"])
def test_what_was_lost_or_spoiled_is_made_anew(lost: str) -> None:
    before = step(None, START)
    signing = Signing() if lost in {"authority", "both"} else before.signing
    serving = Serving() if lost in {"serving", "both"} else before.serving

    after = plan(signing, serving, OPTIONS, START + DAY)

    assert verifies(after.serving.trusted, after.serving.pair)
    if lost == "authority":
        assert after.serving.pair == before.serving.pair  # through the overlap
    if lost == "serving":
        assert after.signing == before.signing


def test_other_names_make_another_certificate_of_the_same_authority() -> None:
    before = step(None, START)
    after = step(before, START, msgspec.structs.replace(OPTIONS, hosts=(*HOSTS, "proxy.example", "10.0.0.1")))

    assert after.signing == before.signing
    assert after.serving.pair is not None
    assert hosts_of(after.serving.pair.leaf) == {*HOSTS, "proxy.example", "10.0.0.1"}


steps = st.lists(st.tuples(st.floats(0, 4), st.sampled_from(["look", "look", "look", "rotate"])), max_size=30)


@settings(max_examples=12, deadline=None)
@given(steps)
def test_whoever_read_what_to_trust_is_served_for_the_overlap_after(taken: list[tuple[float, str]]) -> None:
    # Clients that read what is to be trusted at each step, and whom the kubeconfig worker's memory serves.
    current, moment = step(None, START), START
    readers = [(START, current.serving.trusted)]
    memory = Memory(()).advanced(certificates("".join(current.serving.trusted)), START, OPTIONS.overlap.total_seconds())
    for days, what in taken:
        moment += dt.timedelta(seconds=int(days * 86400))
        current = step(current, moment, rotate() if what == "rotate" else OPTIONS)
        assert verifies(current.serving.trusted, current.serving.pair)
        for read, trusted in readers:
            if moment < read + OPTIONS.overlap:
                assert verifies(trusted, current.serving.pair)
        readers.append((moment, current.serving.trusted))
        bundle = certificates("".join(current.serving.trusted))
        memory = memory.advanced(bundle, moment, OPTIONS.overlap.total_seconds())
        assert verifies(tuple(f"{one}\n" for one in memory.current), current.serving.pair)
        assert current.serving.pair is not None
        assert current.serving.pair.expires > moment


def test_secrets_hold_the_keys_apart_and_come_back_as_they_were() -> None:
    made = step(step(None, START), START + DAY, rotate())
    authority = signing_secret(OPTIONS, made.signing, None)
    proxy = serving_secret(OPTIONS, made.serving, None)

    assert set(authority["data"]) == {"tls.crt", "tls.key", "next.crt", "next.key"}
    assert authority["metadata"]["annotations"] == {ANNOTATION_SWITCH: "2026-01-07T00:00:00Z"}
    assert set(proxy["data"]) == {"tls.crt", "tls.key", "ca.crt", "ca"}
    assert proxy["type"] == "kubernetes.io/tls"
    assert proxy["data"]["ca"] == proxy["data"]["ca.crt"]
    assert "PRIVATE" not in base64.b64decode(proxy["data"]["ca.crt"]).decode()
    assert (read_signing(authority), read_serving(proxy)) == (made.signing, made.serving)
    assert "PRIVATE" not in repr(made)


def test_secrets_that_cannot_be_read_count_as_empty() -> None:
    made = step(None, START)
    other = new_authority("other", DAY, START)
    proxy = serving_secret(OPTIONS, made.serving, None)
    for key, value in (("tls.key", base64.b64encode(other.key.encode()).decode()), ("tls.crt", "%"), ("tls.crt", "")):
        broken = {**proxy, "data": {**proxy["data"], key: value}}
        assert read_serving(broken) == Serving(None, made.serving.trusted)
    assert read_signing({"metadata": {}}) == Signing()


def test_what_stands_beside_ours_in_a_secret_that_is_taken_over_stays() -> None:
    made = step(None, START)
    old = {
        "metadata": {"uid": "u", "resourceVersion": "7", "labels": {"a": "b"}, "annotations": {"c": "d"}},
        "type": "Opaque",
    }
    body = serving_secret(OPTIONS, made.serving, old)

    assert body["type"] == "Opaque"
    assert (body["metadata"]["uid"], body["metadata"]["resourceVersion"]) == ("u", "7")
    assert body["metadata"]["labels"]["a"] == "b"
    assert body["metadata"]["annotations"] == {"c": "d"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hosts": ("a b",)}, "--san 'a b' is neither"),
        ({"hosts": ("UPPER.example",)}, "neither a DNS name"),
        ({"hosts": ("https://x",)}, "neither a DNS name"),
        ({"life": dt.timedelta(minutes=1)}, "--life must be at least 1h"),
        ({"ca_life": 60 * DAY}, "--ca-life must be at least 3 times"),
        ({"overlap": 200 * DAY}, "--overlap must be between"),
        ({"authority": "capsule-proxy"}, "must differ"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(StartError, match=says):
        check(msgspec.structs.replace(OPTIONS, **changes))


@pytest.mark.parametrize("host", ["proxy", "proxy.example", "*.example", "10.0.0.1", "::1", "a-b.c"])
def test_names_and_addresses_are_hosts(host: str) -> None:
    assert is_host(host)
    check(msgspec.structs.replace(OPTIONS, hosts=(host,)))
