"""Write the JSON Schemas of docs/ from the types that prunectl reads and writes.

python scripts/make_schemas.py            write them
python scripts/make_schemas.py --check    exit with 1 if they are not what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from prunectl.layouts.table import LAYOUTS
from prunectl.output.manifest import SCHEMA_VERSION, Manifest

DOCS = Path(__file__).parents[1] / "docs"


def schema_of(kind: type, **head: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document exactly as this version of prunectl writes it: with
    all members, and no others."""
    (top,), definitions = msgspec.json.schema_components((kind,))
    definitions = {name: _exact(one) for name, one in definitions.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **head,
        **definitions.pop(top["$ref"].rpartition("/")[2]),
        "$defs": definitions,
    }


def _exact(definition: dict[str, Any]) -> dict[str, Any]:
    members = {
        name: {key: value for key, value in member.items() if key != "default"}
        for name, member in definition["properties"].items()
    }
    return {
        "description": definition["description"].partition("\n\n")[0],
        "type": "object",
        "additionalProperties": False,
        "required": list(members),
        "properties": members,
    }


def schemas() -> dict[Path, str]:
    """The text of each file."""
    manifest = schema_of(
        Manifest,
        **{"$id": f"urn:prunectl:manifest:{SCHEMA_VERSION}"},
        title=f"prunectl manifest, schema version {SCHEMA_VERSION}",
    )
    # A reader takes any name of a layout, and says later which ones it knows.
    manifest["$defs"]["TensorRecord"]["properties"]["layout"] = {"enum": list(LAYOUTS)}
    return {DOCS / "manifest.schema.json": _text(manifest) + "\n"}


def _text(value: Any, indent: str = "") -> str:
    """JSON with a line for each member of what does not fit on one."""
    line = json.dumps(value)
    if len(indent + line) < 100 or not isinstance(value, dict | list):
        return line
    inner = indent + "  "
    if isinstance(value, list):
        parts = [_text(item, inner) for item in value]
    else:
        parts = [f"{json.dumps(key)}: {_text(item, inner)}" for key, item in value.items()]
    ends = "[]" if isinstance(value, list) else "{}"
    return f"{ends[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{ends[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the JSON Schemas of docs/.")
    parser.add_argument("--check", action="store_true", help="only compare; 1 if one is stale")
    args = parser.parse_args()
    for path, text in schemas().items():
        if not args.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is stale: run make screens")


if __name__ == "__main__":
    main()
