"""The description of the addresses, as OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0)."""

from collections.abc import Mapping, Sequence
from typing import Any

from graftline import __version__
from graftline.serving.limits import Limits
from graftline.serving.login import OPEN

_IMAGE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_PREDICTION = {
    "type": "object",
    "required": ["class", "probability", "probabilities", "refused"],
    "properties": {
        "class": {"type": "string", "description": "what the model answers"},
        "probability": {"type": "number", "description": "its calibrated probability"},
        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
        "refused": {"type": ["boolean", "null"], "description": "none of the classes; null: the model does not tell"},
        "set": {"type": "array", "items": {"type": "string"}, "description": "classes that it may be, if it has sets"},
    },
}
_IDENTITY = {
    "model": {"type": "string"},
    "version": {"type": ["integer", "null"]},
    "uri": {"type": "string"},
    "digest": {"type": "string", "description": "names what the bundle computes"},
}
_ERROR = {
    "type": "object",
    "properties": {"error_code": {"type": "string"}, "message": {"type": "string", "description": "one sentence"}},
}


def specification(models: Sequence[str], limits: Limits, *, has_password: bool) -> dict[str, Any]:
    """Return the description of a server.

    Args:
        models: their names; each has the addresses of the first below ``/models/NAME`` too.
        limits: what is taken in.
        has_password: whether requests must have one.
    """
    paths = {
        "/predict": {"post": _predict(limits)},
        "/invocations": {"post": _invocations(limits)},
        "/explain": {"post": _of_one_image("Where one image shows its class, and the training images like it")},
        "/replay": {"post": _of_one_image("What becomes of one image, step by step, for graftline verify to compare")},
        "/model": {"get": _get("What the model is: classes, digests, calibration, preprocessing, training, card")},
        "/models": {"get": _get("Which models answer here")},
        "/health": {"get": _get("Which version answers, and what is wrong with one that should")},
        "/ping": {"get": _get("200 while the server answers")},
        "/version": {"get": _get("The version of MLflow whose clients this server answers")},
        "/metrics": {"get": _get("Counts for Prometheus", "text/plain")},
    }
    of_each = {
        f"/models/{name}{path}": paths[path]
        for name in (models if len(models) > 1 else ())
        for path in ("/predict", "/invocations", "/explain", "/replay", "/model")
    }
    content: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"graftline: {', '.join(models)}", "version": __version__},
        "paths": paths | of_each,
        "components": {
            "schemas": {
                "Answer": {
                    "type": "object",
                    "properties": {**_IDENTITY, "predictions": {"type": "array", "items": _PREDICTION}},
                },
                "Error": _ERROR,
            }
        },
    }
    return _with_password(content) if has_password else content


def _with_password(content: dict[str, Any]) -> dict[str, Any]:
    for path, methods in content["paths"].items():
        for method in methods.values():
            if path in OPEN:
                method["security"] = []
            else:
                method["responses"] = method["responses"] | _refusals({"401": "without the password"})
    scheme = {"type": "http", "scheme": "basic", "description": "any user name, and the server's password"}
    content["components"]["securitySchemes"] = {"password": scheme}
    return {**content, "security": [{"password": []}]}


def _predict(limits: Limits) -> dict[str, Any]:
    return {
        "summary": "Classify images",
        "description": f"One image or up to {limits.images}, {limits.request_mb} MB together.",
        "requestBody": _images(limits.images),
        "responses": _responses({"$ref": "#/components/schemas/Answer"}),
    }


def _images(most: int) -> dict[str, Any]:
    """Return the ways to send images."""
    many = {"type": "array", "items": _BASE64, "minItems": 1, "maxItems": most}
    parts = {"type": "array", "items": _IMAGE, "minItems": 1, "maxItems": most}
    return {
        "required": True,
        "content": {
            "image/*": {"schema": _IMAGE},
            "application/octet-stream": {"schema": _IMAGE},
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": parts}}},
            "application/json": {"schema": {"type": "object", "properties": {"images": many, "image": _BASE64}}},
        },
    }


def _invocations(limits: Limits) -> dict[str, Any]:
    most = {"type": "array", "maxItems": limits.images}
    rows = most | {"items": {"type": "object", "required": ["image"], "properties": {"image": _BASE64}}}
    column = most | {"items": _BASE64}
    split = {"columns": {"const": ["image"]}, "data": most | {"items": {"type": "array", "items": _BASE64}}}
    tables: dict[str, Any] = {
        "dataframe_records": rows,
        "dataframe_split": {"type": "object", "required": list(split), "properties": split},
        "instances": {"oneOf": [rows, column]},
        "inputs": {"oneOf": [rows, column, {"type": "object", "properties": {"image": {"oneOf": [column, _BASE64]}}}]},
    }
    shapes = [{"type": "object", "required": [name], "properties": {name: table}} for name, table in tables.items()]
    return {
        "summary": "Classify a table of images, as MLflow's clients send it",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"oneOf": shapes}}, "text/csv": {"schema": {"type": "string"}}},
        },
        "responses": _responses({"type": "object", "properties": {"predictions": {"type": "array"}}}),
    }


def _of_one_image(summary: str) -> dict[str, Any]:
    return {"summary": summary, "requestBody": _images(1), "responses": _responses({"type": "object"})}


def _get(summary: str, media_type: str = "application/json") -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": {media_type: {}}}}}


def _responses(schema: dict[str, Any]) -> dict[str, Any]:
    told = {
        "400": "no image, or not what it says",
        "408": "it has not arrived in time",
        "413": "too large, or too many images",
        "415": "of a type that is not taken",
        "503": "too many wait: ask again after Retry-After seconds",
    }
    return {"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}, **_refusals(told)}


def _refusals(told: Mapping[str, str]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": error} for status, text in told.items()}
