"""The columns of a dataset: those that each has, and those that its batches keep of their rows. Pure values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.recipes.origin import TYPES, Kinds, cell_value, to_json

Row = dict[str, Any]  # by column; `meta` and `template_vars` are objects

COLUMNS_OF_CODE_8 = {  # name → type, a name of both Arrow's and the `datasets` library's
    **dict.fromkeys(("key", "image_id", "job_id"), "string"),
    "index": "int32",
    **dict.fromkeys(("prompt", "negative_prompt", "model", "model_revision", "scheduler"), "string"),
    "steps": "int32",
    "guidance": "float64",
    "seed": "uint64",
    **dict.fromkeys(("width", "height"), "int32"),
    **dict.fromkeys(("format", "sha256", "status", "error_code", "worker_class", "versions", "created_at"), "string"),
    "render_ms": "int32",
    **dict.fromkeys(("licence", "split"), "string"),
}
COLUMNS = {
    **COLUMNS_OF_CODE_8,
    "row": "int64",
    "reused": "bool_",
    "original_sha256": "string",  # of the picture in the farm, where the export wrote it in another format or size
}
TEMPLATE_VARS = "template_vars"
META = "meta."  # in tables, in front of the names of what rows keep


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset, the same in all its shards. `kinds`: of what its rows keep, by name."""

    fixed: Mapping[str, str] = field(default_factory=lambda: COLUMNS)
    kinds: Kinds = field(default_factory=dict)
    has_template_vars: bool = False

    @property
    def types(self) -> dict[str, str]:
        """The columns of the tables: name → type."""
        kept = {f"{META}{name}": TYPES[kind or "string"] for name, kind in self.kinds.items()}
        return {**self.fixed, **kept, **({TEMPLATE_VARS: "string"} if self.has_template_vars else {})}

    def sample(self, row: Row) -> Row:
        """A row beside its image: what it keeps is an object."""
        found = {name: row[name] for name in self.fixed}
        if self.kinds:
            kept = row["meta"]
            found["meta"] = {name: cell_value(kind, kept.get(name)) for name, kind in self.kinds.items()}
        return found | ({TEMPLATE_VARS: _as_text(row[TEMPLATE_VARS])} if self.has_template_vars else {})

    def cells(self, row: Row) -> Row:
        """A row of a table. Also of what `sample` returned."""
        found = {name: row[name] for name in self.fixed}
        kept = row.get("meta") or {}
        found |= {f"{META}{name}": cell_value(kind, kept.get(name)) for name, kind in self.kinds.items()}
        if self.has_template_vars:
            found[TEMPLATE_VARS] = _as_text(row.get(TEMPLATE_VARS))
        return found


def _as_text(value: Any) -> str | None:
    """An object whose keys differ from row to row: libraries load it as text only."""
    return value if value is None or isinstance(value, str) else to_json(value)


def columns_of_manifest(manifest: Mapping[str, Any]) -> Columns:
    """The columns of the dataset with this manifest; that of older code does not name them."""
    types = manifest.get("columns", COLUMNS_OF_CODE_8)
    fixed = {name: kind for name, kind in types.items() if name != TEMPLATE_VARS and not name.startswith(META)}
    return Columns(fixed, dict(manifest.get("kept", {})), TEMPLATE_VARS in types)
