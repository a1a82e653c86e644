"""The catalogue of models: a TOML file, read into frozen entries. Knows the entry of a model, not how to load one.

The `source` of an entry is a folder (relative to the file) or a hub id such as `owner/name`. A model that was imported
on this host under a name that the file lacks has an entry of its own, beside its files.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.catalog import checkers, manifest, sentence
from common.catalog.families import Family, families
from common.catalog.loras import Lora, read_lora
from common.catalog.prices import Price, currency_of, read_price
from common.catalog.styles import Style, read_style
from common.catalog.vocabulary import Vocabulary
from common.errors import Invalid, UnknownModel

SCHEDULERS = (
    "ddim",
    "ddpm",
    "deis",
    "dpm++",
    "dpm++_sde",
    "dpm++_singlestep",
    "euler",
    "euler_a",
    "heun",
    "kdpm2",
    "kdpm2_a",
    "lcm",
    "lms",
    "pndm",
    "tcd",
    "unipc",
)
FLOW_SCHEDULERS = ("flow_euler",)  # of models that predict a flow: no other can use them, and they no others
PRECISIONS = ("fp32", "fp16", "bf16")
OUTSIDE_CALL = ("vae", "safety_checker")  # components that diffusers' call of a model does not use


@dataclass(frozen=True)
class Licence:
    """The licence of a model. A tenant accepts one `version` of it, and only a licence that binds its user."""

    name: str
    url: str  # of the full text
    version: str = ""
    restrictions: tuple[str, ...] = ()  # uses that it forbids
    territory: str = ""  # where it is valid, in short
    revenue: str = ""  # up to which yearly revenue of its user, in short
    non_commercial: bool = False
    text: str | None = None  # if it is beside the catalogue

    @property
    def terms(self) -> tuple[str, ...]:
        """Who may use the model at all, in a phrase each."""
        territory = sentence("licence_territory", territory=self.territory) if self.territory else ""
        revenue = sentence("licence_revenue", revenue=self.revenue) if self.revenue else ""
        non_commercial = sentence("licence_non_commercial") if self.non_commercial else ""
        return tuple(term for term in (non_commercial, territory, revenue) if term)

    @property
    def conditions(self) -> tuple[str, ...]:
        """All that a user of the model accepts, in a phrase each."""
        forbidden = sentence("licence_restrictions", restrictions="; ".join(self.restrictions))
        return (*([forbidden] if self.restrictions else ()), *self.terms)

    @property
    def must_be_accepted(self) -> bool:
        return bool(self.restrictions or self.terms)


@dataclass(frozen=True)
class Model:
    """One entry. Sizes are in pixels; `max_pixels` is the limit of width × height.

    `microbatch` is the number of images in one pipeline call; None: each class of worker measures the best one.
    `precision` is that of an accelerator, `component_precision` that of single components. `compile`: the worker
    compiles the model when it loads it. Of images with more pixels than `tile_above` the VAE decodes one tile after
    the other; None: never. All these change pixels, so the metadata of every image names them. `offload`: components
    are on the device only while they are in use. `guided` is False for a model that was distilled to need no guidance,
    and ignores it.
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
    source_path: Path | None  # the local source; None for one of the hub
    import_path: Path | None = None  # where an import puts it; None without a store
    revision: str | None = None
    min_side: int = 64
    max_pixels: int = 1024 * 1024
    max_steps: int = 150
    max_count: int = 64
    microbatch: int | None = None
    token_limit: int = 512
    safety_checker: bool | str = True  # whether its own judges its images, or the name of the farm's that does
    checker: "Model | None" = None  # the farm's of that name, once the catalogue has found it
    precision: str = "fp16"
    component_precision: Mapping[str, str] = field(default_factory=dict)
    compile: bool = False
    tile_above: int | None = None
    offload: bool = False
    negative_prompt: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    guided: bool = True
    loras: dict[str, Lora] = field(default_factory=dict)  # those that fit this model
    price: Price | None = None

    @property
    def facts(self) -> Family:
        """What its family says of all its models."""
        return checkers.FAMILY if self.family == checkers.FAMILY.name else families()[self.family]

    @property
    def tokenizer_file(self) -> Path | None:
        """The `tokenizer.json` of a local model, by which the API counts tokens. None if there is none."""
        files = [
            folder / self.facts.tokenizer / "tokenizer.json"
            for folder in (self.source_path, self.import_path)
            if folder
        ]
        return next((file for file in files if file.is_file()), None)

    @property
    def is_local(self) -> bool:
        """Whether this host has its files."""
        return self.source_path is not None or (
            self.import_path is not None and (self.import_path / manifest.MANIFEST).is_file()
        )


@dataclass(frozen=True)
class Catalog:
    models: dict[str, Model]
    default: str  # the model of recipes that name none, on hosts without an accelerator
    default_gpu: str  # the same, on hosts with one
    loras: dict[str, Lora] = field(default_factory=dict)
    checkers: dict[str, Model] = field(default_factory=dict)  # the farm's own, read as models are
    currency: str | None = None  # of all prices
    styles: dict[str, Style] = field(default_factory=dict)

    def get(self, name: str) -> Model:
        """The entry of that name. Raises UnknownModel, which lists the models."""
        if name not in self.models:
            raise UnknownModel.field("model", sentence("unknown_model", model=name, models=", ".join(self.models)))
        return self.models[name]


def read(path: Path, store: Path | None = None) -> Catalog:
    """Read a catalogue file, and the entries of the models that were imported into this store.

    Where both have a name, the file's entry counts. Raises Invalid, which names the file and what is wrong with it.
    """
    document = _document(path)
    licences = _licences(document, path)
    models = _models(document, licences, path, store)
    try:
        loras = {name: read_lora(name, entry, path.parent) for name, entry in document.get("loras", {}).items()}
        styles = {name: read_style(name, entry) for name, entry in document.get("styles", {}).items()}
        own_checkers = _checkers(document, licences, path, store)
        default = document["default"]
    except (KeyError, TypeError) as error:
        raise _wrong_entry(path, error) from error
    for file in sorted(store.glob(f"[!.]*/{manifest.ENTRY}")) if store else ():
        for name, model in _models(_document(file), licences, file, store).items():
            models.setdefault(name, replace(model, source_path=None))  # its files are in the store
    models = {name: with_checker(_with_loras(model, loras), own_checkers) for name, model in models.items()}
    currency = currency_of(model.price for model in models.values())
    catalog = Catalog(models, default, document.get("default_gpu", default), loras, own_checkers, currency, styles)
    for name in (catalog.default, catalog.default_gpu):
        catalog.get(name)
    return catalog


def with_checker(model: Model, own: Mapping[str, Model]) -> Model:
    """The model with the safety checker that its entry names. Raises Invalid if the farm has none of that name."""
    if isinstance(model.safety_checker, bool):
        return model
    if model.safety_checker not in own:
        name, names = model.safety_checker, ", ".join(own) or "–"
        raise Invalid(sentence("safety_checker_unknown", model=model.name, checker=name, checkers=names))
    return replace(model, checker=own[model.safety_checker])


def model_from_entry(name: str, entry: Mapping[str, Any], store: Path) -> Model:
    """The model of an entry that is not in a file yet. Raises Invalid."""
    return _models({"models": {name: entry}}, {}, store / name / manifest.ENTRY, store)[name]


def read_entry(name: str, store: Path) -> dict[str, Any]:
    """The entry that the import of a model wrote, and that an operator may have changed. Empty if there is none."""
    file = store / name / manifest.ENTRY
    return dict(_document(file)["models"][name]) if file.is_file() else {}


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Invalid(sentence("catalogue_unreadable", path=path, reason=str(error))) from error


def _models(
    document: dict[str, Any], licences: Mapping[str, Licence], path: Path, store: Path | None
) -> dict[str, Model]:
    try:
        found = {name: _model(name, entry, licences, path.parent) for name, entry in document["models"].items()}
    except (KeyError, TypeError) as error:
        raise _wrong_entry(path, error) from error
    return {name: replace(model, import_path=store / name) for name, model in found.items()} if store else found


def _checkers(
    document: dict[str, Any], licences: Mapping[str, Licence], path: Path, store: Path | None
) -> dict[str, Model]:
    entries = {name: checkers.entry_of(name, entry) for name, entry in document.get("checkers", {}).items()}
    known = {checkers.FAMILY.name: checkers.FAMILY}
    found = {
        name: _model(f"{name}{checkers.SUFFIX}", entry, licences, path.parent, known) for name, entry in entries.items()
    }
    return {name: replace(model, import_path=store and store / model.name) for name, model in found.items()}


def _licences(document: dict[str, Any], path: Path) -> dict[str, Licence]:
    """The licences by their ids on the hub, which the entries of imported models name."""
    try:
        found = [_licence(name, entry, path.parent) for name, entry in document.get("licences", {}).items()]
    except TypeError as error:
        raise _wrong_entry(path, error) from error
    return {_hub_licence_id(licence.name): licence for licence in found}


def _licence(name: str, entry: dict[str, Any], base: Path) -> Licence:
    file = base / "licences" / f"{name}.txt"
    text = file.read_text(encoding="utf-8") if file.is_file() else None
    return Licence(name, **{**entry, "restrictions": tuple(entry.get("restrictions", ()))}, text=text)


def _hub_licence_id(licence: str) -> str:
    """`CreativeML OpenRAIL-M` → `creativeml-openrail-m`."""
    return licence.lower().replace(" ", "-")


def _wrong_entry(path: Path, error: KeyError | TypeError) -> Invalid:
    """`error` is that of a key that is missing or unknown, or it has a sentence about the entry."""
    reason = sentence("key_missing", key=error.args[0]) if isinstance(error, KeyError) else error.args[0]
    return Invalid(sentence("catalogue_wrong", path=path, reason=reason))


def _model(
    name: str,
    entry: dict[str, Any],
    licences: Mapping[str, Licence],
    base: Path,
    known_families: Mapping[str, Family] | None = None,
) -> Model:
    values = dict(entry)
    url, licence = values.pop("licence_url", None), values["licence"]
    known = licences.get(_hub_licence_id(licence))
    if known is None and url is None:
        raise TypeError(sentence("licence_unknown", model=name, licence=licence))
    values["licence"] = known or _licence(licence, {"url": url}, base)
    if words := values.pop("vocabulary", None):
        values["vocabulary"] = Vocabulary(tuple(words["words"]), words["advice"], tuple(words.get("other_words", ())))
    values["price"] = read_price(name, values.get("price"))
    known_families = known_families or families()
    if values["family"] not in known_families:
        names = ", ".join(known_families)
        raise TypeError(sentence("model_family_unknown", model=name, family=values["family"], families=names))
    path = base / values["source"]
    values = {**known_families[values["family"]].defaults, **values}
    model = Model(name=name, source_path=path if path.is_dir() or _is_path(values["source"]) else None, **values)
    if model.scheduler not in model.facts.schedulers:
        schedulers = ", ".join(model.facts.schedulers)
        raise TypeError(
            sentence("model_scheduler_unknown", model=name, scheduler=model.scheduler, schedulers=schedulers)
        )
    checkers.check(name, model.safety_checker, model.facts)
    _check_precisions(model)
    if model.microbatch is not None and model.microbatch < 1:
        raise TypeError(sentence("model_microbatch_too_small", model=name, microbatch=model.microbatch))
    if model.tile_above is not None and model.tile_above < 0:
        raise TypeError(sentence("model_tile_above_negative", model=name, pixels=model.tile_above))
    return replace(model, microbatch=1) if model.facts.sharing == "single" else model


def _check_precisions(model: Model) -> None:
    """Raises TypeError with a sentence."""
    for component in model.component_precision:
        if component not in OUTSIDE_CALL or component not in model.facts.components:
            known = ", ".join(name for name in OUTSIDE_CALL if name in model.facts.components)
            raise TypeError(sentence("model_component_unknown", model=model.name, component=component, known=known))
    for precision in (model.precision, *model.component_precision.values()):
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise TypeError(
                sentence("model_precision_unknown", model=model.name, precision=precision, precisions=known)
            )


def _with_loras(model: Model, loras: dict[str, Lora]) -> Model:
    return replace(model, loras={name: lora for name, lora in loras.items() if lora.fits(model.name, model.family)})


def _is_path(source: str) -> bool:
    """Whether a source is a path, even if nothing is there. A hub id is `owner/name`."""
    return source.startswith(("/", "./", "../"))
