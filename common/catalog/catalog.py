"""The catalogue of models: a TOML file read into frozen entries. Knows what a model is for, not how it is loaded.

An entry's `source` is a folder (relative to the file) or a hub id such as `owner/name`. What was imported on this host
under a name that the file lacks has an entry of its own, beside its files.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.catalog import manifest
from common.catalog.loras import Lora, read_lora
from common.errors import Invalid, UnknownModel

SCHEDULERS = ("ddim", "ddpm", "deis", "dpm++", "dpm++_sde", "euler", "euler_a", "heun", "kdpm2", "lms", "pndm", "unipc")
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Vocabulary:
    """What a model can draw, by its entry: `words`, any of which a prompt needs, and `advice` if it has none."""

    words: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class Licence:
    """What a model may be used for. Another `version` is another text: who accepted the one has not accepted the other.

    One with `restrictions` binds whoever uses the model; one without is only named.
    """

    name: str
    url: str  # of the full text
    version: str = ""
    restrictions: tuple[str, ...] = ()
    text: str | None = None  # where it is beside the catalogue


@dataclass(frozen=True)
class Model:
    """One entry. Sizes are pixels; `max_pixels` bounds width × height.

    `microbatch` is the images in one call; None: as many as each class of worker finds to be best. `precision` is what
    an accelerator computes in, `compile` whether the worker compiles the model: both move pixels, and every picture
    names them.
    """

    name: str
    source: str
    family: str
    licence: Licence
    description: str
    width: int
    height: int
    steps: int
    scheduler: str
    guidance: float
    folder: Path | None  # that its source is; None for one of the hub
    store: Path | None = None  # where its import lies, once there is one
    revision: str | None = None
    min_side: int = 64
    max_pixels: int = 1024 * 1024
    max_steps: int = 150
    max_count: int = 64
    microbatch: int | None = None
    token_limit: int = 512
    safety_checker: bool = True
    precision: str = "fp16"
    compile: bool = False
    negative_prompt: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    loras: dict[str, Lora] = field(default_factory=dict)  # those of the catalogue that fit it

    @property
    def tokenizer_file(self) -> Path | None:
        """`tokenizer.json` of a model whose files are here: what the API counts prompts with."""
        files = [folder / "tokenizer" / "tokenizer.json" for folder in (self.folder, self.store) if folder]
        return next((file for file in files if file.is_file()), None)

    @property
    def is_here(self) -> bool:
        """Whether this host has its files."""
        return self.folder is not None or (self.store is not None and (self.store / manifest.MANIFEST).is_file())


@dataclass(frozen=True)
class Catalog:
    models: dict[str, Model]
    default: str  # on hosts without an accelerator
    default_gpu: str
    loras: dict[str, Lora] = field(default_factory=dict)

    def get(self, name: str) -> Model:
        """The entry of that name. Raises UnknownModel, naming those there are."""
        if name not in self.models:
            raise UnknownModel.field("model", f"there is no model {name!r}; the catalogue has {', '.join(self.models)}")
        return self.models[name]


def read(path: Path, store: Path | None = None) -> Catalog:
    """Read a catalogue file, and the entries of what was imported into this store. An entry of the file goes first.

    Raises Invalid in one sentence that names the file and the entry.
    """
    document = _document(path)
    licences = _licences(document, path)
    models = _models(document, licences, path, store)
    try:
        loras = {name: read_lora(name, entry, path.parent) for name, entry in document.get("loras", {}).items()}
        default = document["default"]
    except (KeyError, TypeError) as error:
        raise _incomplete(path, error) from error
    for file in sorted(store.glob(f"[!.]*/{manifest.ENTRY}")) if store else ():
        for name, model in _models(_document(file), licences, file, store).items():
            models.setdefault(name, replace(model, folder=None))  # its files are in the store, wherever they were
    models = {name: _with_loras(model, loras) for name, model in models.items()}
    catalog = Catalog(models, default, document.get("default_gpu", default), loras)
    for name in (catalog.default, catalog.default_gpu):
        catalog.get(name)
    return catalog


def of_entry(name: str, entry: Mapping[str, Any], store: Path) -> Model:
    """The model of an entry that is in no file yet. Raises Invalid."""
    return _models({"models": {name: entry}}, {}, store / name / manifest.ENTRY, store)[name]


def own_entry(name: str, store: Path) -> dict[str, Any]:
    """The entry that was written when a model was imported, and changed since perhaps; nothing where there is none."""
    file = store / name / manifest.ENTRY
    return dict(_document(file)["models"][name]) if file.is_file() else {}


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"The catalogue {path} cannot be read: {error}.") from error


def _models(
    document: dict[str, Any], licences: Mapping[str, Licence], path: Path, store: Path | None
) -> dict[str, Model]:
    try:
        found = {name: _model(name, entry, licences, path.parent) for name, entry in document["models"].items()}
    except (KeyError, TypeError) as error:
        raise _incomplete(path, error) from error
    return {name: replace(model, store=store / name) for name, model in found.items()} if store else found


def _licences(document: dict[str, Any], path: Path) -> dict[str, Licence]:
    """By their names as the hub spells them: models that were imported bear those."""
    try:
        found = [_licence(name, entry, path.parent) for name, entry in document.get("licences", {}).items()]
    except TypeError as error:
        raise _incomplete(path, error) from error
    return {_as_on_the_hub(licence.name): licence for licence in found}


def _licence(name: str, entry: dict[str, Any], base: Path) -> Licence:
    file = base / "licences" / f"{name}.txt"
    text = file.read_text(encoding="utf-8") if file.is_file() else None
    return Licence(name, **{**entry, "restrictions": tuple(entry.get("restrictions", ()))}, text=text)


def _as_on_the_hub(licence: str) -> str:
    """`CreativeML OpenRAIL-M` → `creativeml-openrail-m`."""
    return licence.lower().replace(" ", "-")


def _incomplete(path: Path, error: Exception) -> Invalid:
    return Invalid(f"The catalogue {path} is incomplete or has an entry that is not known: {error}.")


def _model(name: str, entry: dict[str, Any], licences: Mapping[str, Licence], base: Path) -> Model:
    values = dict(entry)
    url, licence = values.pop("licence_url", None), values["licence"]
    known = licences.get(_as_on_the_hub(licence))
    if known is None and url is None:
        raise TypeError(f"{name} names the licence {licence!r}, which has neither an entry nor a licence_url")
    values["licence"] = known or _licence(licence, {"url": url}, base)
    if words := values.pop("vocabulary", None):
        values["vocabulary"] = Vocabulary(tuple(words["words"]), words["advice"])
    folder = base / values["source"]
    model = Model(name=name, folder=folder if folder.is_dir() or _is_path(values["source"]) else None, **values)
    if model.scheduler not in SCHEDULERS:
        raise TypeError(f"{name} names the scheduler {model.scheduler!r}")
    if model.precision not in PRECISIONS:
        raise TypeError(f"{name} names the precision {model.precision!r}, not one of {', '.join(PRECISIONS)}")
    if model.microbatch is not None and model.microbatch < 1:
        raise TypeError(f"{name} has a microbatch of {model.microbatch}")
    return model


def _with_loras(model: Model, loras: dict[str, Lora]) -> Model:
    return replace(model, loras={name: lora for name, lora in loras.items() if lora.fits(model.name, model.family)})


def _is_path(source: str) -> bool:
    """A hub id is `owner/name`; anything that starts like a path is one, even when nothing is there."""
    return source.startswith(("/", "./", "../"))
