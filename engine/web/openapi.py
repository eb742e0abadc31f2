"""The OpenAPI 3.1 document of an interface, made from the routes that it really has."""

from collections.abc import Iterable
from typing import Any

import msgspec

from engine.web.problems import CONTENT_TYPE, KINDS, TYPE_PREFIX, Code
from engine.web.routes import PATH_IDS, Route, RouteTable

JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/components/schemas/{name}"

HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The request's own id, taken from the request or made.",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    "Idempotent-Replayed": {
        "description": "`true` where the answer repeats what an earlier request of the same key did.",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {
        "description": "Seconds after which asking again can help.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Allow": {"description": "The methods that the path takes.", "required": True, "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to say who calls.", "required": True, "schema": {"type": "string"}},
    "Link": {
        "description": "The address of the next page, with rel=next, while there is one.",
        "schema": {"type": "string"},
    },
    "Location": {"description": "Where it is to be had.", "required": True, "schema": {"type": "string"}},
    "Set-Cookie": {"description": "A cookie for browsers.", "required": True, "schema": {"type": "string"}},
    "ETag": {
        "description": "The version of what was read or changed, for If-Match.",
        "schema": {"type": "string"},
    },
}
_HEADERS_BY_CODE = {Code.METHOD_NOT_ALLOWED: ("Allow",), Code.UNAUTHORIZED: ("WWW-Authenticate",)}
_REPLAYED_REFUSALS = (Code.PAYMENT_TOO_LATE, Code.DUPLICATE_PAYMENT)


def openapi_document(title: str, version: str, description: str, table: RouteTable) -> dict[str, Any]:
    """The document, ready for JSON."""
    schemas = _schemas(table.routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in table.routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "jsonSchemaDialect": JSON_SCHEMA_DIALECT,
        "paths": paths,
        "components": {
            "schemas": {**schemas.components, "Problem": _problem_schema()},
            "headers": HEADERS,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key made by `miaocang keys create`."}
            },
        },
    }


class _Schemas:
    """The JSON Schema of every type that the routes name."""

    def __init__(self, kinds: list[Any]) -> None:
        found, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
        self._by_kind = dict(zip(kinds, map(_portable, found), strict=True))
        self.components = {name: _portable(schema) for name, schema in components.items()}

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of one type, mostly a reference to a component."""
        schema: dict[str, Any] = self._by_kind[kind]
        return schema

    def members(self, kind: Any) -> tuple[dict[str, Any], set[str]]:
        """The members of a struct with their schemas, and the names of those that are required."""
        name = self.of(kind)["$ref"].rsplit("/", 1)[1]
        component = self.components[name]
        return component.get("properties", {}), set(component.get("required", ()))


def _schemas(routes: Iterable[Route]) -> _Schemas:
    kinds: dict[Any, None] = {}
    for route in routes:
        for kind in (route.request, route.query, *(success.kind for success in route.successes.values())):
            if kind is not None:
                kinds[kind] = None
    return _Schemas(list(kinds))


def _portable(schema: Any) -> Any:
    r"""JSON Schema's patterns are ECMAScript's, where the end of the text is `$` and `\Z` would be a letter."""
    if isinstance(schema, dict):
        return {
            name: value.replace("\\Z", "$") if name == "pattern" and isinstance(value, str) else _portable(value)
            for name, value in schema.items()
        }
    if isinstance(schema, list):
        return [_portable(item) for item in schema]
    return schema


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "responses": {**_success_responses(route, schemas), **_problem_responses(route)},
    }
    if parameters := [*_path_parameters(route), *_query_parameters(route, schemas), *_header_parameters(route)]:
        operation["parameters"] = parameters
    if route.request is not None:
        content = {"application/json": {"schema": schemas.of(route.request)}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.role is not None:
        operation["security"] = [{"key": []}]
        operation["description"] = f"Takes a key of the role `{route.role}`."
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_IDS[name].description,
            "schema": {"type": "string"},
        }
        for name in route.parameters
    ]


def _query_parameters(route: Route, schemas: _Schemas) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    members, required = schemas.members(route.query)
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in members.items()
    ]


def _header_parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {
            "name": "X-Request-Id",
            "in": "header",
            "required": False,
            "description": "1 to 128 visible ASCII characters; made where it is not given.",
            "schema": {"type": "string"},
        }
    ]
    if route.takes_idempotency_key:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": True,
                "description": "The same for each repeat of one request, and for no other: 1 to 255 visible ASCII "
                "characters.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        )
    parameters += [
        {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}
        for name, description in route.optional_headers.items()
    ]
    return parameters


def _success_responses(route: Route, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, success in route.successes.items():
        schema = schemas.of(success.kind) if success.kind is not None else {}
        responses[str(status)] = {
            "description": success.description,
            "headers": _header_references(("X-Request-Id", *success.headers)),
            **({"content": {success.content_type: {"schema": schema}}} if success.content_type else {}),
        }
    return responses


def refusal_codes(route: Route) -> list[Code]:
    """Every code that a route can be refused with: those it declares, and those that follow from its declaration."""
    codes = {*route.refusals, Code.INTERNAL, Code.METHOD_NOT_ALLOWED, Code.TOO_LARGE, Code.MALFORMED}
    if route.role is not None:
        codes |= {Code.UNAUTHORIZED, Code.FORBIDDEN, Code.NOT_FOUND}
    if route.request is not None:
        codes |= {Code.UNSUPPORTED_MEDIA_TYPE, Code.INVALID}
    if route.query is not None:
        codes.add(Code.INVALID)
    if route.takes_idempotency_key:
        codes.add(Code.IDEMPOTENCY_KEY_REQUIRED)
    codes |= {PATH_IDS[name].not_found.code for name in route.parameters}
    return [code for code in Code if code in codes]


def _problem_responses(route: Route) -> dict[str, Any]:
    by_status: dict[int, list[Code]] = {}
    for code in refusal_codes(route):
        by_status.setdefault(KINDS[code].status, []).append(code)
    return {str(status): _problem_response(codes) for status, codes in sorted(by_status.items())}


def _problem_response(codes: list[Code]) -> dict[str, Any]:
    names = ["X-Request-Id", *(name for code in codes for name in _HEADERS_BY_CODE.get(code, ()))]
    if all(KINDS[code].retry_after_seconds is not None for code in codes):
        names.append("Retry-After")
    if any(code in _REPLAYED_REFUSALS for code in codes):
        names.append("Idempotent-Replayed")
    schema = {
        "allOf": [
            {"$ref": _REFERENCE.format(name="Problem")},
            {"properties": {"code": {"enum": [str(code) for code in codes]}}},
        ]
    }
    return {
        "description": "; ".join(f"`{code}`: {KINDS[code].title.lower()}" for code in codes),
        "headers": _header_references(names),
        "content": {CONTENT_TYPE: {"schema": schema}},
    }


def _header_references(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problem_schema() -> dict[str, Any]:
    error = {
        "type": "object",
        "required": ["field", "reason"],
        "properties": {"field": {"type": "string"}, "reason": {"type": "string"}},
    }
    return {
        "type": "object",
        "description": "A problem document by RFC 9457. Programs decide by `code`; members beside those below depend "
        "on it: `sku` and `available` (SOLD_OUT), `scope`, `limit` and `bought` (BUYER_LIMIT_REACHED), `amount_minor` "
        "(PRICE_CHANGED, AMOUNT_MISMATCH), `order_status` (ORDER_NOT_HELD).",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string", "format": "uri-reference", "examples": [TYPE_PREFIX + Code.SOLD_OUT]},
            "title": {"type": "string"},
            "status": {"type": "integer", "enum": sorted({kind.status for kind in KINDS.values()})},
            "detail": {"type": "string"},
            "code": {"type": "string", "enum": [str(code) for code in Code]},
            "errors": {
                "type": "array",
                "items": error,
                "description": "Each wrong field of the request and why (INVALID), or what is in the way (CONFLICT).",
            },
            "sku": {"type": "string"},
            "available": {"type": "integer", "description": "Units that this channel can buy now."},
            "scope": {"type": "string", "enum": ["sku", "style", "sale"]},
            "limit": {"type": "integer"},
            "bought": {"type": "integer", "description": "Units of this buyer held and settled, without this request."},
            "amount_minor": {"type": "integer"},
            "currency": {"type": "string"},
            "order_status": {"type": "string"},
        },
    }
