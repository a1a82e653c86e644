"""The manifest of an imported model, and where an import lies on a host.

    STORE/NAME/manifest.json          source, revision and the sha256 of every file
    STORE/NAME/model_index.json, unet/, vae/ …        the layout of diffusers; the components are links to
    STORE/.parts/DIGEST/              a component, named by its content: models that share it store it once
    STORE/NAME/entry.toml             the model's entry, if the catalogue has none of that name
    STORE/NAME+safety-checker/        a safety checker of the farm's own, like a model

Reads only: `worker.models.store` writes an import beside its place and renames it, so what is read is whole. Does not
know the catalogue.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST, ENTRY, COMPONENTS = "manifest.json", "entry.toml", ".parts"
FORMAT = 2


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Component:
    """One folder of a model. `digest` is `digest_of` its files, which are named by their path in the folder."""

    digest: str
    files: Mapping[str, File]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class ModelManifest:
    """The manifest of a model.

    `revision` is the hub's commit or, for a local source, a digest of its contents. `requested_revision` is what the
    entry names: a branch or a tag. `source_state` changes whenever a local source changes; "" for one of the hub.
    """

    name: str
    source: str
    revision: str
    requested_revision: str | None
    source_state: str
    family: str
    licence: str
    index: File  # model_index.json
    components: Mapping[str, Component]
    provenance: Mapping[str, Any]  # when it was imported, and by which libraries

    @property
    def bytes(self) -> int:
        return sum(component.bytes for component in self.components.values())

    @property
    def sha256(self) -> dict[str, str]:
        """The sha256 of each file, by its path in the model's folder."""
        found = {"model_index.json": self.index.sha256}
        for name, component in self.components.items():
            found |= {f"{name}/{path}": file.sha256 for path, file in component.files.items()}
        return found

    def shared_with(self, others: Iterable["ModelManifest"]) -> dict[str, list[str]]:
        """The components that other models have too: the names of those models by the name of the component."""
        others = [other for other in others if other.name != self.name]
        found = {
            name: [other.name for other in others if _has(other, name, component)]
            for name, component in self.components.items()
        }
        return {name: names for name, names in found.items() if names}

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=2) + "\n"


def digest_of(files: Mapping[str, File]) -> str:
    """The digest of a component: sha256 over the names and sums of its files, in hex."""
    lines = [f"{file.sha256}  {name}\n" for name, file in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read(folder: Path) -> ModelManifest | None:
    """The manifest in this folder. None if there is none, or none of this format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest.pop("format") != FORMAT:
            return None
        index = File(**manifest.pop("index"))
        components = {name: _component(written) for name, written in manifest.pop("components").items()}
        return ModelManifest(**manifest, index=index, components=components)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_all(store: Path) -> list[ModelManifest]:
    """The manifests of all models in this store."""
    found = (read(file.parent) for file in sorted(store.glob(f"[!.]*/{MANIFEST}")))
    return [model for model in found if model]


def _has(model: ModelManifest, name: str, component: Component) -> bool:
    return name in model.components and model.components[name].digest == component.digest


def _component(written: Mapping[str, Any]) -> Component:
    return Component(written["digest"], {name: File(**file) for name, file in written["files"].items()})
