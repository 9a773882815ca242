"""Reads of Namespaces: through the API server, narrowed to the caller's; at resourceVersion=0 from memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.clock import now
from proxycore.passing import NAMESPACES
from proxycore.policy import ListMemory, ListUpstream, ReadMemory
from proxycore.protobuf import MEDIA_TYPE, filter_list
from proxycore.remembering import Memory, size_of
from proxycore.rendered import LARGEST, MOST, SHARE, RenderedLists
from proxycore.replying import compresses, reply
from proxycore.representations import accepts_json, item_of, negotiate, render_list, render_one, takes
from proxycore.statuses import RefusedError, bad_gateway, expired, unavailable
from proxycore.watching import selected

if TYPE_CHECKING:
    from proxycore.accounting import Asked, Run
    from proxycore.decisions import Decisions
    from proxycore.feed import NamespaceFeed
    from proxycore.identities import Identity
    from proxycore.listquery import ListQuery
    from proxycore.passage import Ends
    from proxycore.passing import Passing
    from proxycore.plane.exchange import Request
    from proxycore.upstream import Upstream

LONGEST_TARGET: Final = 6000
"""Characters of an upstream target; a longer selector would break on servers between, so the list is filtered here."""
ATTEMPTS: Final = 3
_OK: Final = 200


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[msgspec.Raw]


class _Name(msgspec.Struct, frozen=True):
    name: str = ""


class _Named(msgspec.Struct, frozen=True):
    metadata: _Name = _Name()


_NAMED: Final = msgspec.json.Decoder(_Named)


class NamespaceLists:
    """Answers lists of Namespaces, and single ones from memory."""

    def __init__(self, feed: NamespaceFeed, upstream: Upstream, passing: Passing, decisions: Decisions) -> None:
        self._feed = feed
        self._upstream = upstream
        self._passing = passing
        self._rendered = RenderedLists()
        self._decisions = decisions
        # By decision, form and second: whole answers of one epoch. The entry holds the decision, so no id comes again.
        self._answers: Memory[tuple[int, str, int], tuple[ListMemory | ReadMemory, bytes]]
        self._answers = Memory(most=MOST, share=SHARE)
        self._targets: Memory[int, tuple[ListUpstream, str]] = Memory(most=MOST, share=SHARE)
        self._epoch = -1

    def ask_at_once(self, asked: Asked, decision: ListUpstream, ends: Ends) -> bool:
        """Ask the API server for a list, if nothing has to be awaited for that; tell whether."""
        self._look()
        kept = self._targets.get(id(decision))
        target = kept[1] if kept is not None else _target(decision.names, decision.query)
        if kept is None and asked.lasts:
            user = asked.acting.identity.user
            self._targets.put(id(decision), (decision, target), holder=user, size=len(target))
        if len(target) > LONGEST_TARGET:
            return False
        asked.run.route = "list"
        epoch = self._epoch

        def still() -> bool:
            # The answer's resourceVersion must not be newer than the grants that it was narrowed by: a watch goes on
            # from it.
            self._decisions.look()
            return self._decisions.epoch == epoch or self._feed.names(asked.acting.identity) == decision.names

        return self._passing.read_at_once(asked, target, ends, still)

    def answer_at_once(self, asked: Asked, decision: ListMemory | ReadMemory) -> bool:
        """Answer from memory if that may be used, without anything to await; tell whether."""
        self._look()
        accept = asked.meaning.accept
        key = id(decision), accept, int(time.time())  # a Table tells ages, in seconds
        found = self._answers.get(key)
        if found is None:
            body = self._memory(asked, decision)
            if body is None or compresses(asked.request, body):
                return False
            found = decision, body
            if asked.lasts and len(found[1]) <= LARGEST:
                self._answers.put(key, found, holder=asked.acting.identity.user, size=len(body) + len(accept))
        asked.run.route = "memory"
        asked.run.began()
        asked.request.reply(_OK, found[1])
        return True

    def _look(self) -> None:
        """Forget what was kept if a view moved on."""
        self._decisions.look()
        if self._epoch != self._decisions.epoch or not self._feed.is_settled:
            self._epoch = self._decisions.epoch
            self._answers.clear()
            self._targets.clear()

    @property
    def kept(self) -> int:
        """How many rendered lists are kept."""
        return len(self._rendered)

    async def answer(self, asked: Asked, decision: ListUpstream | ListMemory) -> None:
        """Answer one list through the API server, or a large one from memory; RefusedError."""
        request, run, identity = asked.request, asked.run, asked.acting.identity
        if isinstance(decision, ListMemory) and (body := self._memory(asked, decision)) is not None:
            run.route = "memory"
            run.began()
            await reply(request, body)
            return
        run.route = "list"
        names, query = decision.names, decision.query
        for _ in range(ATTEMPTS):
            target = _target(names, query)
            if len(target) > LONGEST_TARGET:
                run.route = "filter"
                await self._filtered(request, run, identity, query)
                return
            upstream = await run.upstream(self._upstream.as_proxy("GET", target, asked.passed))
            # As in `ask_at_once`.
            if (current := self._feed.names(identity)) == names:
                await self._passing.relay(request, run, upstream)
                return
            upstream.release()
            names = current
        raise RefusedError(unavailable("your tenants' namespaces change faster than they can be listed; try again"))

    def _memory(self, asked: Asked, decision: ListMemory | ReadMemory) -> bytes | None:
        """Return an answer; None when a watch may not go on from the version of memory, or memory cannot tell."""
        single = isinstance(decision, ReadMemory)
        try:
            form = negotiate(asked.meaning.accept, watch=False, single=single)
        except RefusedError:
            return None  # protobuf alone, for example: the API server renders it
        if not (self._feed.is_settled and self._feed.version() >= self._feed.oldest(asked.acting.identity)):
            return None
        if isinstance(decision, ReadMemory):
            record = self._feed.record(decision.name)
            return None if record is None else render_one(item_of(record.body), form, "Metadata", now())
        query = decision.query
        records = [record for name in sorted(decision.names) if (record := self._feed.record(name)) is not None]
        version, at = str(self._feed.version()), now()

        def render() -> bytes:
            items = [item for record in records if selected(item := item_of(record.body), query)]
            return render_list(items, version, form, query.include_object, at)

        # A Table tells ages, in seconds.
        second = int(at.timestamp()) if form == "table" else 0
        return self._rendered.body(
            (decision.names, query, form, version, second),
            records,
            render,
            holder=asked.acting.identity.user,
            size=size_of(query, len(decision.names)),
        )

    async def _filtered(self, request: Request, run: Run, identity: Identity, query: ListQuery) -> None:
        if query.continues:
            raise RefusedError(expired("of the continue token", self._feed.floor or 0))
        accept = request.value("accept")
        binary = takes(accept, MEDIA_TYPE) and not accepts_json(accept)
        form = "json" if binary else negotiate(accept, watch=False)
        whole = msgspec.structs.replace(query, passed_on=())
        target = f"{NAMESPACES}?{whole.upstream(None)}"
        asked = [("Accept", MEDIA_TYPE if binary else "application/json")]
        upstream = await run.upstream(self._upstream.as_proxy("GET", target, asked))
        if upstream.code != _OK:
            await self._passing.relay(request, run, upstream)
            return
        raw = await upstream.read()
        # By the grants of now: the list was asked for without names, so nothing is lost by a change meanwhile.
        names = self._feed.names(identity)
        try:
            if binary:
                body = filter_list(raw, lambda one: one.name in names)
            else:
                found = msgspec.json.decode(raw, type=_List)
                # Of what is not the caller's, which may be most of a large cluster, nothing but the name is read.
                mine = [item_of(one) for one in found.items if _NAMED.decode(one).metadata.name in names]
                body = render_list(mine, found.metadata.resource_version, form, query.include_object, now())
        except msgspec.DecodeError:
            raise RefusedError(bad_gateway("the API server's list cannot be read")) from None
        run.began()
        await reply(request, body)


def _target(names: frozenset[str], query: ListQuery) -> str:
    return f"{NAMESPACES}?{query.upstream(tuple(sorted(names)))}"
