# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP API: clients and status as JSON, and their description as OpenAPI."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kztmem import metrics
from kztmem.errors import BadInput, DaemonError
from kztmem.schemas import ClientChange, ClientRequest, schemas
from kztmem.validation import problems

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from kztmem.service import Service

    Handler = Callable[[Request], Awaitable[Response]]

M = TypeVar("M", bound=BaseModel)

MAX_BODY: Final = 64 << 10
"""Bytes of a request's body; the longest sensible one has a hundred."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Operation:
    method: str
    path: str
    summary: str
    handler: Handler
    answer: str | None
    """Name of the answer's schema; None: no body."""
    status: int = 200
    body: str | None = None
    errors: dict[int, str] = field(default_factory=dict)


def application(service: Service) -> Starlette:
    """The API of a serving daemon."""
    operations = _Api(service).operations()
    document = JSONResponse(_describe(operations, service.version))

    async def openapi(_request: Request) -> Response:
        return document

    async def prometheus(_request: Request) -> Response:
        return Response(metrics.render(service), headers={"content-type": metrics.CONTENT_TYPE})

    routes = [
        _route(path, {o.method: o.handler for o in operations if o.path == path})
        for path in dict.fromkeys(operation.path for operation in operations)
    ]
    routes += [Route("/metrics", prometheus), Route("/openapi.json", openapi)]
    return Starlette(
        routes=routes,
        exception_handlers={
            DaemonError: _refused,
            HTTPException: _no_such_thing,
            Exception: _bug,
        },
    )


class _Api:
    """Parses requests, calls the daemon, prints what it says."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def operations(self) -> list[_Operation]:
        missing = {404: "No client has this name."}
        full = {507: "It cannot be written down; nothing was changed."}
        return [
            _Operation(
                method="GET",
                path="/v1/status",
                summary="The daemon, its arena and all clients",
                handler=self.status,
                answer="Status",
            ),
            _Operation(
                method="GET",
                path="/v1/clients",
                summary="All clients",
                handler=self.list,
                answer="Clients",
            ),
            _Operation(
                method="POST",
                path="/v1/clients",
                summary="Make a client; 200 if it exists like this",
                handler=self.create,
                body="ClientRequest",
                answer="Client",
                status=201,
                errors={
                    400: "Something of it is not possible.",
                    409: "It exists and is another, or there is not so much to be reserved.",
                    **full,
                },
            ),
            _Operation(
                method="GET",
                path="/v1/clients/{name}",
                summary="One client",
                handler=self.show,
                answer="Client",
                errors=missing,
            ),
            _Operation(
                method="PATCH",
                path="/v1/clients/{name}",
                summary="Change a client's weight, cap and reservation; what is left out stays",
                handler=self.change,
                body="ClientChange",
                answer="Client",
                errors={
                    400: "It is not possible.",
                    409: "Its size or deduplication is another and never changes, or there is "
                    "not so much to be reserved.",
                    **missing,
                    **full,
                },
            ),
            _Operation(
                method="DELETE",
                path="/v1/clients/{name}",
                summary="Remove a client: its connections are closed, its pages thrown away",
                handler=self.delete,
                answer=None,
                status=204,
                errors={**missing, **full},
            ),
        ]

    async def status(self, _request: Request) -> Response:
        return JSONResponse(self._service.status())

    async def list(self, _request: Request) -> Response:
        return JSONResponse({"clients": self._service.clients()})

    async def create(self, request: Request) -> Response:
        wanted = await _body(request, ClientRequest)
        add = self._service.registry.add
        made = await asyncio.to_thread(add, wanted.name, wanted.settings())
        return JSONResponse(self._service.client(wanted.name), status_code=201 if made else 200)

    async def show(self, request: Request) -> Response:
        return JSONResponse(self._service.client(_name(request)))

    async def change(self, request: Request) -> Response:
        name = _name(request)
        self._service.client(name)  # a client that is not there goes before a bad body
        wanted = await _body(request, ClientChange)
        change = self._service.registry.change
        await asyncio.to_thread(
            change, name, swap=wanted.swap, dedup=wanted.dedup, terms=wanted.terms()
        )
        return JSONResponse(self._service.client(name))

    async def delete(self, request: Request) -> Response:
        await asyncio.to_thread(self._service.registry.remove, _name(request))
        return Response(status_code=204)


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    return name


async def _body(request: Request, model: type[M]) -> M:
    """The request's body, or `BadInput` about its first mistake."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise BadInput(f"the body has more than {MAX_BODY} bytes", key="body")
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        problem = next(problems(error, model))
        raise BadInput(problem.message, key=problem.key or "body", hint=problem.hint) from error


def _route(path: str, handlers: dict[str, Handler]) -> Route:
    """One route for all methods of a path, so that a 405 names each of them."""

    async def dispatch(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, dispatch, methods=list(handlers))


def _error(
    status: int,
    message: str,
    key: str | None,
    hint: str | None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = {"error": message, "key": key, "hint": hint}
    return JSONResponse(body, status_code=status, headers=headers)


async def _refused(_request: Request, error: Exception) -> Response:
    if not isinstance(error, DaemonError):
        raise error
    return _error(error.http_status, error.message, error.key, error.hint)


async def _no_such_thing(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    hint = "see /openapi.json"
    return _error(error.status_code, error.detail, request.url.path, hint, error.headers)


async def _bug(_request: Request, error: Exception) -> Response:
    _log.error("request failed", exc_info=error)
    return _error(500, f"{type(error).__name__}: {error}", None, "a bug: see the daemon's log")


def _describe(operations: list[_Operation], version: str) -> dict[str, Any]:
    """The OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        answers: dict[str, Any] = {
            str(operation.status): {
                "description": operation.summary,
                **({"content": _content(operation.answer)} if operation.answer else {}),
            }
        }
        for status, what in operation.errors.items():
            answers[str(status)] = {"description": what, "content": _content("Error")}
        entry: dict[str, Any] = {"summary": operation.summary, "responses": answers}
        if operation.body:
            entry["requestBody"] = {"required": True, "content": _content(operation.body)}
        if "{name}" in operation.path:
            entry["parameters"] = [
                {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        paths.setdefault(operation.path, {})[operation.method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {"title": "kztmemd", "version": version},
        "paths": paths,
        "components": {"schemas": schemas()},
    }


def _content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
