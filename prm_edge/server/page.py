"""The page at ``/``: the OpenAPI document for people. No script, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from typing import Any, Final

STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;"
    "color:#1c2430;background:#fff}"
    "h1{font-size:1.6rem}h2{font-size:1.05rem;margin-top:2rem}"
    "code,pre{font-family:ui-monospace,monospace;font-size:.9rem}"
    "pre{background:#f2f4f7;padding:.8rem;border-radius:.4rem;overflow:auto}"
    "b{display:inline-block;min-width:4.5rem}"
    "@media(prefers-color-scheme:dark){body{color:#e6e9ee;background:#14181f}"
    "pre{background:#1f2530}a{color:#8ab4ff}}"
)


def page(document: dict[str, Any]) -> str:
    """The page of a document."""
    info = document["info"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])}</p>",
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>',
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method != "parameters":
                parts += _operation(document, path, method, operation)
    return "\n".join([*parts, "</main></body></html>", ""])


def _operation(
    document: dict[str, Any], path: str, method: str, operation: dict[str, Any]
) -> list[str]:
    answers = ", ".join(operation["responses"])
    parts = [
        f"<h2><b>{escape(method.upper())}</b> <code>{escape(path)}</code></h2>",
        f"<p>{escape(operation['summary'])}. Answers: {escape(answers)}.</p>",
    ]
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        named = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        shapes = named.get("oneOf", [named])
        parts += [f"<pre>{escape(_shape(shape))}</pre>" for shape in shapes]
    return parts


def _shape(schema: dict[str, Any]) -> str:
    """A body as an example of its own types; what may be left out ends in a question mark."""
    fields = {
        key + ("" if key in schema["required"] else "?"): _example(value)
        for key, value in schema["properties"].items()
    }
    return json.dumps(fields)


def _example(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return " or ".join(filter(None, schema["enum"]))
    if schema["type"] == "array":
        return [_example(schema["items"]), "..."]
    return {"string": "text", "integer": 1}[schema["type"]]


def policy(text: str) -> str:
    """The Content-Security-Policy that lets the page have its own style, and nothing else."""
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in styles]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; style-src {allowed}; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'"
    )
