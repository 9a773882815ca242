"""What an attack did: was the victim stopped, did anything leak, was a revocation late. Pure.

Late is a revocation that took more than three times what it takes without an attack, measured in the same run, and more
than a floor below which nobody on a busy machine could tell.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tests.kubeapi import Reply

TIMES: Final = 3
FLOOR_SECONDS: Final = 2.0
ONBOARDING_FLOOR_SECONDS: Final = 10.0
"""Who is new takes its turn among others that are; a revocation does not wait for them."""
HOLD_SECONDS: Final = 3.0
"""An answer to the victim, or of a process to its probe, that takes longer is one that did not come."""
GROWN_TIMES: Final = 2
GROWN_BYTES: Final = 100 * 2**20
_MESSAGE: Final = 200


class Found(msgspec.Struct):
    """What speaks against Tether, each a line that says what happened; ``slow`` is who waited for what then came."""

    stopped: list[str] = msgspec.field(default_factory=list)
    slow: list[str] = msgspec.field(default_factory=list)
    leaked: list[str] = msgspec.field(default_factory=list)
    late: list[str] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        return self.is_certain or self.is_of_time

    @property
    def is_certain(self) -> bool:
        """Tell whether something is wrong that no slow moment of a machine explains."""
        return bool(self.stopped or self.leaked)

    @property
    def is_of_time(self) -> bool:
        """Tell whether something took too long."""
        return bool(self.slow or self.late)

    def add(self, other: Found) -> None:
        self.stopped += other.stopped
        self.slow += other.slow
        self.leaked += other.leaked
        self.late += other.late

    def lines(self) -> list[str]:
        """Return each finding with its kind, none twice."""
        stopped = (*self.stopped, *self.slow)
        kinds = (("stopped", stopped), ("leaked", self.leaked), ("late", self.late))
        return list(dict.fromkeys(f"{kind}: {line}" for kind, lines in kinds for line in lines))


class Beat(msgspec.Struct, frozen=True):
    """One thing that a bystander did: ``status`` of HTTP, 0 where no answer came, and how long it took, in seconds."""

    what: str
    status: int
    seconds: float
    why: str = ""


class Process(msgspec.Struct, frozen=True):
    """A process of a role: which one, its resident memory in bytes, and how it answers its probe ("" is well)."""

    pid: int
    started: int
    memory: int
    ill: str = ""


class Baseline(msgspec.Struct, frozen=True):
    """What is usual: the median of each step of a victim, in seconds, and the memory of each process, in bytes."""

    seconds: dict[str, float]
    memory: dict[str, int]

    @classmethod
    def of(cls, cycles: Iterable[Mapping[str, float]], processes: Mapping[str, Process]) -> Baseline:
        """Return the medians of cycles without an attack."""
        steps: dict[str, list[float]] = {}
        for cycle in cycles:
            for step, seconds in cycle.items():
                steps.setdefault(step, []).append(seconds)
        medians = {step: statistics.median(values) for step, values in steps.items()}
        return cls(medians, {name: one.memory for name, one in processes.items()})

    def limit(self, step: str, floor: float = FLOOR_SECONDS) -> float:
        """Return how long a step may take, in seconds."""
        return max(TIMES * self.seconds[step], floor)


def of_revocation(took: Mapping[str, float], baseline: Baseline) -> Found:
    """Judge the steps of a revocation by what is usual."""
    return Found(late=_slow(took, baseline, FLOOR_SECONDS))


def of_onboarding(took: Mapping[str, float], baseline: Baseline) -> Found:
    """Judge the steps before it by the same measure: who waits is stopped."""
    return Found(slow=_slow(took, baseline, ONBOARDING_FLOOR_SECONDS))


def _slow(took: Mapping[str, float], baseline: Baseline, floor: float) -> list[str]:
    return [
        f"{step}: after {seconds:.1f} s, usual are {baseline.seconds[step]:.1f} s"
        for step, seconds in took.items()
        if seconds > baseline.limit(step, floor)
    ]


def of_beats(beats: Iterable[Beat]) -> Found:
    """Judge what bystanders got: a refusal, an error or a late answer is somebody who was stopped."""
    found = Found()
    for beat in beats:
        if beat.status != 200:
            found.stopped.append(f"{beat.what}: {beat.status or 'no answer'} {beat.why}".rstrip())
        elif beat.seconds > HOLD_SECONDS:
            found.slow.append(f"{beat.what}: answered after {beat.seconds:.1f} s")
    return found


def of_processes(
    before: Mapping[str, Process], after: Mapping[str, Process | None], baseline: Baseline, spared: Collection[str] = ()
) -> Found:
    """Judge the processes of the roles; those of ``spared`` roles the case itself ended, so they are other ones now."""
    stopped = []
    for name, was in before.items():
        now, same = after.get(name), name.rpartition("-")[0] in spared
        if now is None or (not same and (now.pid, now.started) != (was.pid, was.started)):
            stopped.append(f"{name} ended")
            continue
        usual = baseline.memory.get(name, was.memory)
        # By this case, and not only by those before it. nats-server holds in memory what it wrote of late, by design.
        grew = now.memory > was.memory + GROWN_BYTES // 2 and not name.startswith("nats")
        if grew and now.memory > GROWN_TIMES * usual + GROWN_BYTES:
            stopped.append(f"{name} grew to {now.memory >> 20} MiB from {usual >> 20}")
        if now.ill:
            stopped.append(f"{name} is not well: {now.ill}")
    return Found(stopped=stopped)


def of_list(shown: Collection[str], own: Collection[str]) -> Found:
    """Judge what a list showed to somebody by what is theirs."""
    return Found(leaked=[f"foreign namespace in a list: {name}" for name in sorted(set(shown) - set(own))])


def of_answer(what: str, answer: Reply, expected: Collection[int], secrets: Collection[str] = ()) -> Found:
    """Judge what an attacker got: a code that it must get, and never a value that only the victim may read."""
    found = Found()
    text = str(answer.body)
    said = str(answer.body.get("message", "")) if isinstance(answer.body, dict) else text
    by_webhook = answer.status == 500 and "denied the request" in said  # Capsule's has this code for a refusal too
    if answer.status not in expected and not by_webhook:
        line = f"{what}: answered {answer.status} {said[:_MESSAGE]}".rstrip()
        # What was not refused is a right; what could not be answered is somebody else's work that stood still.
        (found.leaked if answer.status < 400 else found.stopped).append(line)
    if any(secret in text for secret in secrets):
        found.leaked.append(f"{what}: the answer holds what is the victim's alone")
    return found
