"""The HTTPS side of the embedded API: TLS, the request pipeline, streaming of watches, every failure as a Status."""

from __future__ import annotations

import traceback
from contextlib import aclosing
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from tether.devcluster import answers, errors
from tether.devcluster.answers import Answer
from tether.devcluster.bodies import MAX_BYTES
from tether.devcluster.contracts import ApiError, Authenticator, Authorizer, UserInfo
from tether.devcluster.endpoints import Asked, Endpoints, WatchAnswer
from tether.devcluster.negotiation import JSON, Representation, negotiate
from tether.devcluster.requests import parse_request

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

_log = structlog.get_logger()
_STOP_SECONDS = 2.0


class ApiServer:
    """Serves the endpoints: authentication, impersonation, authorization, then the answer."""

    def __init__(self, endpoints: Endpoints, authenticator: Authenticator, authorizer: Authorizer) -> None:
        self._endpoints = endpoints
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._runner: web.AppRunner | None = None

    async def start(self, tls: ssl.SSLContext, host: str, port: int) -> int:
        """Listen; returns the port, which is a free one when 0 was asked for. OSError when it is in use."""
        app = web.Application(client_max_size=MAX_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=_STOP_SECONDS
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=tls)
        await site.start()
        address = self._runner.addresses[0]
        return int(address[1])

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._serve(request)
        except ApiError as error:
            return _failure(request, error)
        except web.HTTPRequestEntityTooLarge:
            return _failure(request, errors.too_large(MAX_BYTES))
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 -- the last resort: told as a Status, logged without any value
            where = traceback.format_tb(error.__traceback__)[-3:]
            _log.error("request failed", method=request.method, path=request.path, error=repr(type(error)), where=where)
            return _failure(request, errors.internal())

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        user = self._user(request)
        info = parse_request(request.method, request.path, request.query)
        attributes = info.attributes(user)
        allowed, reason = self._authorizer.authorize(attributes)
        if not allowed:
            raise errors.denied(attributes, reason)
        asked = Asked(
            user=user,
            info=info,
            method=request.method,
            query=request.query,
            headers=request.headers,
            read_body=request.read,
        )
        answer = await self._endpoints.answer(asked)
        if isinstance(answer, WatchAnswer):
            return await _stream(request, answer)
        return _whole(answer)

    def _user(self, request: web.Request) -> UserInfo:
        headers: Mapping[str, str] = request.headers
        user = self._authenticator.authenticate(headers, _peer_certificate(request))
        if any(name.lower().startswith("impersonate-") for name in headers):
            return self._authenticator.impersonate(user, headers, lambda name: request.headers.getall(name, []))
        return user


def _peer_certificate(request: web.Request) -> bytes | None:
    connection = request.transport.get_extra_info("ssl_object") if request.transport else None
    return connection.getpeercert(binary_form=True) if connection else None


def _whole(answer: Answer) -> web.Response:
    headers = {"Cache-Control": "no-cache, private", **answer.headers}
    return web.Response(status=answer.status, body=answer.body, content_type=answer.media_type, headers=headers)


def _failure(request: web.Request, error: ApiError) -> web.Response:
    try:
        how = negotiate(request.headers.get("Accept", ""))
    except ApiError:
        how = Representation(JSON)
    status = error.status()
    headers = {}
    retry = (error.details or {}).get("retryAfterSeconds")
    if retry:
        headers["Retry-After"] = str(retry)
    answer = answers.document(status, Representation(how.media_type), error.code)
    return _whole(Answer(status=answer.status, body=answer.body, media_type=answer.media_type, headers=headers))


async def _stream(request: web.Request, answer: WatchAnswer) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": JSON, "Cache-Control": "no-cache, private"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    first = True
    async with aclosing(answer.watch.batches()) as batches:
        async for batch in batches:
            lines = []
            for event in batch:
                lines.append(answers.watch_line(answer.resource, event, answer.how, request.query, first=first))
                first = False
            await response.write(b"".join(lines))
    await response.write_eof()
    return response
