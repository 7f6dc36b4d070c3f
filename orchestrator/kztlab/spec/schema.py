# SPDX-License-Identifier: GPL-2.0-or-later
"""The model as a JSON schema for editors and as a reference page for people."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from kztlab.spec.model import (
    AnonSpec,
    Cluster,
    CollectSpec,
    FilesSpec,
    GuestSpec,
    Section,
    StoreSpec,
    TmemSpec,
    WorkloadSpec,
)
from kztlab.spec.template import init_text

SECTIONS: dict[type[Section], str] = {
    Cluster: "The file",
    StoreSpec: "store",
    GuestSpec: "guests.NAME",
    TmemSpec: "guests.NAME.tmem",
    WorkloadSpec: "workloads[]",
    AnonSpec: "workloads[].anon",
    FilesSpec: "workloads[].files",
    CollectSpec: "collect",
}

_TITLES = {section.__name__: title for section, title in SECTIONS.items()}
_PLAIN_TYPES = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
}

_HEAD = """\
# cluster.yaml

A cluster.yaml describes a lab: its guests, the page store they share, and what runs in them.
`kztlab check FILE` says what is wrong with one, with line, column and a hint; `kztlab init` writes
an example; `kztlab schema` prints a JSON schema for editors.

*Generated from the model by `python -m kztlab.spec`; do not edit.*

```yaml
{example}```

## Values

| type | written | remarks |
|---|---|---|
| size | `512MiB`, `1.5GiB`, `4096` | suffixes `B` `KiB` `MiB` `GiB` `TiB`; a number is bytes; \
`512M` is refused, as it could mean two sizes |
| duration | `500ms`, `10s`, `5min`, `1.5h` | always with its unit |
| name | `web`, `db-2` | a small letter, then up to 30 small letters, digits or hyphens |

The file is YAML 1.2, UTF-8, at most 256KiB. Every key may stand once; unknown keys are errors.
Anchors and aliases work; tags and merge keys are refused.
"""


def json_schema() -> dict[str, Any]:
    """The JSON schema of a cluster.yaml, defaults written as in the file."""
    schema = Cluster.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "cluster.yaml"
    for model in SECTIONS:
        part = schema if model is Cluster else schema["$defs"][model.__name__]
        for name, field in model.model_fields.items():
            if not field.is_required():
                adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
                part["properties"][name]["default"] = adapter.dump_python(
                    field.get_default(call_default_factory=True), mode="json"
                )
    return schema


def reference() -> str:
    """The reference page, Markdown."""
    schema = json_schema()
    page = [_HEAD.format(example=init_text())]
    for model, title in SECTIONS.items():
        part = schema if model is Cluster else schema["$defs"][model.__name__]
        required = part.get("required", [])
        heading = title if model is Cluster else f"`{title}`"
        page.append(f"\n## {heading}\n\n{part['description']}\n")
        page.append("| key | type | default | meaning |\n|---|---|---|---|")
        for key, described in part["properties"].items():
            default = "required" if key in required else _default(described["default"])
            page.append(
                f"| `{key}` | {_type(described)} | {default} | {described['description']} |"
            )
    return "\n".join(page) + "\n"


def _default(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict | list):
        return "all defaults" if value else "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _type(described: dict[str, Any]) -> str:
    match described:
        case {"anyOf": parts}:
            text = " or ".join(_type(part) for part in parts if part != {"type": "null"})
        case {"$ref": reference}:
            title = _TITLES[reference.rsplit("/", 1)[-1]]
            text = f"[`{title}`](#{_anchor(title)})"
        case {"enum": words}:
            text = ", ".join(f"`{word}`" for word in words)
        case {"patternProperties": values}:
            text = "mapping of " + _type(next(iter(values.values())))
        case {"type": "array", "items": items}:
            text = "list of " + _type(items)
        case {"title": "size" | "duration" as title}:
            text = title
        case _:
            text = _PLAIN_TYPES[described["type"]]
    return text


def _anchor(title: str) -> str:
    return "".join(letter for letter in title.lower() if letter.isalnum() or letter in "-_")
