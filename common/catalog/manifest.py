"""What an import leaves on a host: a folder for each model, whose parts are stored once whoever has them.

    STORE/NAME/manifest.json          what it is, where it came from, the sha256 of every file
    STORE/NAME/model_index.json, unet/, vae/ …        laid out as diffusers does; the parts are links to
    STORE/.parts/DIGEST/              a part, named by its content: models that have it in common share it
    STORE/NAME/entry.toml             its entry, where the catalogue has none of this name

Only reads, and nothing that is not whole: `worker.models.importer` writes beside and renames. Knows no catalogue.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST, ENTRY, PARTS = "manifest.json", "entry.toml", ".parts"
FORMAT = 1


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Component:
    digest: str
    files: Mapping[str, File]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class ModelManifest:
    """The manifest of a model. `revision` is the hub's commit, or the digest of all that was in a folder or a file."""

    name: str
    source: str
    revision: str
    asked: str | None  # the revision that its entry names: a branch, a tag
    state: str  # of a folder or file when it was read: another one is another model
    family: str
    licence: str
    index: File  # model_index.json
    parts: Mapping[str, Component]
    about: Mapping[str, Any]  # when, and by which libraries

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    @property
    def sha256(self) -> dict[str, str]:
        """Of each file, by its path in the model's folder."""
        files = {f"{name}/{file}": of.sha256 for name, part in self.parts.items() for file, of in part.files.items()}
        return {"model_index.json": self.index.sha256, **files}

    def shared_with(self, others: Iterable["ModelManifest"]) -> dict[str, list[str]]:
        """Which of its parts other models have too: the part, and their names."""
        others = [other for other in others if other.name != self.name]
        found = {
            name: [other.name for other in others if name in other.parts and other.parts[name].digest == part.digest]
            for name, part in self.parts.items()
        }
        return {name: names for name, names in found.items() if names}

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=2) + "\n"


def digest_of(files: Mapping[str, File]) -> str:
    """Of a part, by its files' names and contents."""
    lines = [f"{file.sha256}  {name}\n" for name, file in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read(folder: Path) -> ModelManifest | None:
    """What was imported into this folder; None where that is nothing, or nothing that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest.pop("format") != FORMAT:
            return None
        index = File(**manifest.pop("index"))
        parts = {name: _part(part) for name, part in manifest.pop("parts").items()}
        return ModelManifest(**manifest, index=index, parts=parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_all(store: Path) -> list[ModelManifest]:
    found = (read(file.parent) for file in sorted(store.glob(f"[!.]*/{MANIFEST}")))
    return [model for model in found if model]


def _part(written: Mapping[str, Any]) -> Component:
    return Component(written["digest"], {name: File(**file) for name, file in written["files"].items()})
