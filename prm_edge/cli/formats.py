"""``prm-edge formats``: what can be read, what can be written, and the bounds on both."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import json_option

CONTAINERS = (
    ("JSON lines", "one object a line; blank lines are skipped"),
    ("JSON array", "a file named .json that begins with ["),
    ("Parquet", "one record a row; extra parquet"),
    ("gzip, zstd", "of the first two, seen from the first bytes; zstd needs the extra zstd"),
)


@click.command("formats", short_help="List what can be read and written.")
@json_option
def formats_command(as_json: bool) -> None:
    """List the records that are recognised, the files they may lie in, and the forms of output."""
    data = as_data()
    click.echo(json.dumps(data, indent=2) if as_json else "\n".join(as_text(data)))


def as_data() -> dict[str, Any]:
    """Everything there is to say, for programs."""
    from prm_edge.inputs import MAX_DECOMPRESSED_BYTES, MAX_EXPANSION, MAX_ROW_GROUP_BYTES
    from prm_edge.records import MAX_LINE_BYTES
    from prm_edge.schemas import SCHEMAS
    from prm_edge.writers import FORMS

    return {
        "records": [
            {"name": schema.name, "keys": list(schema.keys), "about": schema.about}
            for schema in SCHEMAS
        ],
        "files": [{"name": name, "about": about} for name, about in CONTAINERS],
        "forms": [{"name": form.name, "about": form.about} for form in FORMS],
        "limits": {
            "line_bytes": MAX_LINE_BYTES,
            "decompressed_bytes": MAX_DECOMPRESSED_BYTES,
            "expansion": MAX_EXPANSION,
            "row_group_bytes": MAX_ROW_GROUP_BYTES,
        },
    }


def as_text(data: dict[str, Any]) -> list[str]:
    """Everything there is to say, line by line."""
    limits = data["limits"]
    records = [(f"{' + '.join(item['keys'])}", item["about"]) for item in data["records"]]
    mebi = 1024**2
    return [
        "records, recognised by their keys (other keys are ignored)",
        *_rows(records),
        "",
        "files",
        *_rows([(item["name"], item["about"]) for item in data["files"]]),
        "",
        "forms of output (--form)",
        *_rows([(item["name"], item["about"]) for item in data["forms"]]),
        "",
        "limits",
        *_rows(
            [
                ("a line", f"{limits['line_bytes'] // mebi} MiB, and so a JSON array"),
                (
                    "unpacked",
                    f"{limits['decompressed_bytes'] // 1024**3} GiB, and {limits['expansion']} "
                    "times what is stored",
                ),
                ("a row group", f"{limits['row_group_bytes'] // mebi} MiB"),
            ]
        ),
    ]


def _rows(pairs: list[tuple[str, str]]) -> list[str]:
    width = max(len(key) for key, _ in pairs)
    return [f"  {key:{width}}  {value}" for key, value in pairs]
