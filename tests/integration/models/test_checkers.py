"""Safety checkers of the farm's own: they judge the images of any family, and are imported, shared and verified."""

import hashlib
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.catalog import manifest
from common.catalog.catalog import Catalog, Model
from common.config import Settings
from common.errors import Conflict, Invalid, ModelRefused
from tests.conformance.test_pipelines import request_for
from tests.integration.models.test_cli import cut
from tests.integration.models.test_damaged_weights import fill
from tests.integration.models.test_import import flip_a_bit, ignore, load
from tests.support import checkers, checkpoints
from tests.support.command_line import CommandLine
from tests.support.twins import z_image
from worker.models import checkers as imports
from worker.models import cli, importer
from worker.pipelines.base import Pipeline, RenderedImage
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

STORED = "strict+safety-checker"  # its name in the store
WEIGHTS = "safety_checker/model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkers, and a model with an own one and one without, in folders of their own."""
    root = tmp_path_factory.mktemp("made")
    checkers.make(root / "strict", strict=True)
    checkers.make(root / "lenient", strict=False)
    checkpoints.make(root / "sd")
    z_image.make(root / "z")
    return root


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    """A strict checker that a test may change."""
    return shutil.copytree(made / "strict", tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


Read = Callable[..., Catalog]


@pytest.fixture
def read(made: Path, source: Path, store: Path, tmp_path: Path) -> Read:
    def read(checker: dict[str, Any] | None = None, **entry: Any) -> Catalog:
        """Of a model `z` of a family without checkers, one `sd` that has its own, and the checkers."""
        z = {"source": made / "z", "family": "z-image", "guidance": 4.0, "safety_checker": "strict", **entry}
        sd = {"source": made / "sd", "family": "stable-diffusion-zh", "scheduler": "pndm", "token_limit": 60}
        named = {"strict": {"source": source, **(checker or {})}, "lenient": {"source": made / "lenient"}}
        models = {"z": z, "sd": sd, "sd-strict": {**sd, "safety_checker": "strict"}}
        return checkers.read(tmp_path / "catalog.toml", store, models, named)

    return read


@pytest.fixture
def ready(store: Path) -> Iterator[Callable[[Model], DiffusersPipeline]]:
    """Loads a model as a worker does: what it needs is imported."""
    loaded: list[DiffusersPipeline] = []

    def ready(model: Model) -> DiffusersPipeline:
        imports.ensure_imported(model, store, ignore)
        pipeline = load(importer.ensure_imported(model, store, load, ignore))
        assert isinstance(pipeline, DiffusersPipeline)
        loaded.append(pipeline)
        return pipeline

    yield ready
    for pipeline in loaded:
        pipeline.close()


def judged(pipeline: Pipeline) -> RenderedImage:
    (image,) = pipeline.generate([request_for(pipeline)], lambda step, steps: None)
    assert isinstance(image, RenderedImage)
    return image


def refusal(model: Model, store: Path) -> str:
    with pytest.raises(ModelRefused) as raised:
        imports.ensure_imported(model, store, ignore)
    assert raised.value.message.startswith(f"The model {model.name} is refused: its safety checker cannot be used. ")
    assert [each.name for each in manifest.read_all(store)] == []
    return raised.value.message


@pytest.fixture
def call(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    settings = {"MODELS_DIR": store, "HOME": tmp_path, "DEVICE": "cpu", "CATALOG": tmp_path / "catalog.toml"}
    for name, value in settings.items():
        monkeypatch.setenv(f"HUAFANG_{name}", str(value))
    return CommandLine(capsys)


# Who judges


@pytest.mark.parametrize(("checker", "flags"), [("strict", True), ("lenient", False)])
def test_a_named_checker_judges_a_family_whose_files_have_none(
    read: Read, ready: Callable[[Model], DiffusersPipeline], checker: str, flags: bool
) -> None:
    image = judged(ready(read(safety_checker=checker).get("z")))
    assert image.score is not None
    assert (image.flagged, image.unchecked, image.score > 0) == (flags, False, flags)


def test_without_one_nothing_is_judged_if_the_operator_says_so(
    read: Read, ready: Callable[[Model], DiffusersPipeline]
) -> None:
    image = judged(ready(read(safety_checker=False).get("z")))
    assert (image.flagged, image.score) == (False, None)


def test_a_named_checker_replaces_the_models_own(read: Read, ready: Callable[[Model], DiffusersPipeline]) -> None:
    found = read()
    assert not judged(ready(found.get("sd"))).flagged
    other = ready(found.get("sd-strict"))
    assert judged(other).flagged
    assert other._pipe.safety_checker is None  # its own takes no memory


# On disk and in memory


def sums(store: Path) -> tuple[str, str]:
    """Of the weights and of the extractor; a conversion writes other configurations."""
    imported = manifest.read(store / STORED)
    assert imported
    return imported.sha256[WEIGHTS], imported.sha256["feature_extractor/preprocessor_config.json"]


@pytest.mark.parametrize("form", [checkers.as_one_folder, checkpoints.as_pickles])
def test_a_checker_is_the_same_in_each_layout(
    read: Read, source: Path, store: Path, made: Path, form: Callable[[Path], Path]
) -> None:
    imports.ensure_imported(read().get("z"), store, ignore)
    before = sums(store)
    shutil.rmtree(store)
    if form is checkpoints.as_pickles:  # which reads the index
        shutil.copyfile(made / "sd" / "model_index.json", source / "model_index.json")
    form(source)
    imports.ensure_imported(read().get("z"), store, ignore)
    assert sums(store) == before
    assert len(list((store / manifest.COMPONENTS).iterdir())) == 2


def test_models_have_a_checker_in_memory_once(read: Read, ready: Callable[[Model], DiffusersPipeline]) -> None:
    found = read()
    first, second = ready(found.get("z")), ready(found.get("sd-strict"))
    assert first._judged_by.safety_checker is second._judged_by.safety_checker
    (shared,) = first.components.keys() & second.components.keys()
    assert first.components[shared] == second.components[shared] > 10_000


def test_an_import_of_a_model_keeps_the_checker(
    read: Read, ready: Callable[[Model], DiffusersPipeline], store: Path, tmp_path: Path, made: Path
) -> None:
    """It deletes components that no model has."""
    ready(read().get("z"))
    old = checkpoints.as_in_2022(shutil.copytree(made / "sd", tmp_path / "old"))
    importer.ensure_imported(checkpoints.entry(old), store, load, ignore)
    assert judged(ready(read().get("z"))).flagged


def test_another_source_is_imported_anew(
    read: Read, ready: Callable[[Model], DiffusersPipeline], made: Path, source: Path
) -> None:
    assert judged(ready(read().get("z"))).flagged
    shutil.copyfile(made / "lenient" / WEIGHTS, source / WEIGHTS)
    assert not judged(ready(read().get("z"))).flagged


def test_what_was_imported_for_another_source_judges_nothing(
    read: Read, ready: Callable[[Model], DiffusersPipeline], made: Path
) -> None:
    """The operator names another source: until it is imported here, the model is refused."""
    assert judged(ready(read().get("z"))).flagged
    model = read(checker={"source": made / "lenient"}).get("z")
    with pytest.raises(ModelRefused, match="its safety checker strict was not imported on this host"):
        load(model)
    assert not judged(ready(model)).flagged


# What is refused


def test_a_model_is_refused_while_its_checker_is_not_here(read: Read, store: Path, tmp_path: Path) -> None:
    model = read().get("z")
    file = tmp_path / "catalog.toml"
    settings = Settings(home=tmp_path, models_dir=store, device="cpu", torch_threads=1, catalog=file)
    given = dict.fromkeys(("name", "revision", "licence", "like", "safety_checker", "no_safety_checker"))

    def verified(files_only: bool = False) -> str | None:
        return cli.verify(settings, Namespace(names=["z"], files_only=files_only))["z"]

    def imported(dry_run: bool = False) -> dict[str, Any]:
        return cli.import_one(settings, Namespace(source="z", dry_run=dry_run, **given))

    with pytest.raises(ModelRefused) as raised:
        load(model)
    missing = raised.value.message
    assert missing.startswith("The model z is refused: its safety checker strict was not imported on this host.")
    assert [verified(), verified(files_only=True)] == [missing] * 2
    assert f"{STORED}/{WEIGHTS}" in [file["path"] for file in imported(dry_run=True)["files"]]
    assert imported()["folder"] == str(store / STORED)
    with pytest.raises(Conflict, match="nothing to import"):
        imported()
    assert [verified(), verified(files_only=True)] == [None] * 2
    assert judged(load(model)).flagged

    flip_a_bit(store / STORED / WEIGHTS)
    changed = verified(files_only=True)
    assert f"The model {STORED} is refused: the sha256 of {WEIGHTS} is not what it must be." in (changed or "")
    assert verified() == changed
    with pytest.raises(ModelRefused, match=f"the sha256 of {WEIGHTS}"):
        load(model)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.nan, "its safety_checker has weights that are NaN, concept_embeds"),
        (3e38, "it gives NaN for a test image"),
    ],
)
def test_a_checker_of_nan_is_refused(read: Read, source: Path, store: Path, value: float, reason: str) -> None:
    fill(source / WEIGHTS, "concept_embeds", value)
    assert reason in refusal(read().get("z"), store)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "there is no folder"),
    "no extractor": (lambda f: shutil.rmtree(f / "feature_extractor"), "its files have no feature_extractor"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "safety_checker holds no weights"),
    "weights empty": (lambda f: (f / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is empty"),
    "weights cut short": (lambda f: cut(f / WEIGHTS), f"{WEIGHTS} is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checker_is_refused_with_the_reason(read: Read, source: Path, store: Path, damage: str) -> None:
    harm, reason = DAMAGE[damage]
    model = read().get("z")
    harm(source)
    assert reason in refusal(model, store)


def test_a_checker_must_have_the_checksums_of_its_entry(read: Read, source: Path, store: Path) -> None:
    files = [file for file in source.rglob("*") if file.is_file()]
    right = {file.relative_to(source).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    some = {path: sha256 for path, sha256 in right.items() if path != WEIGHTS}
    assert f"none of {WEIGHTS}" in refusal(read({"sha256": some}).get("z"), store)
    assert f"the sha256 of {WEIGHTS} is not" in refusal(read({"sha256": {**right, WEIGHTS: "0" * 64}}).get("z"), store)
    imports.ensure_imported(read({"sha256": right}).get("z"), store, ignore)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "undecided": (
        {"safety_checker": True},
        "z is of the family z-image, whose files have no safety checker: name one of [checkers] as its safety_checker, "
        "or set safety_checker = false",
    ),
    "unknown": ({"safety_checker": "mild"}, "names the safety checker 'mild'; the catalogue has strict, lenient"),
    "a number": ({"safety_checker": 0}, "it must be true, false, or the name of one of [checkers]"),
    "a checker as a model": ({"family": "safety-checker"}, "names the family 'safety-checker'"),
    "another key": ({"checker": {"steps": 5}}, "the safety checker strict has a steps; it can have source, revision"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_catalogue_must_say_who_judges(read: Read, wrong: str) -> None:
    entry, reason = WRONG[wrong]
    with pytest.raises(Invalid) as raised:
        read(**entry)
    assert reason in raised.value.message


def test_a_model_whose_checker_nobody_has_found_is_never_judged_by_none(read: Read) -> None:
    with pytest.raises(ModelRefused, match="its safety checker strict was not imported"):
        load(replace(read().get("z"), checker=None))


def test_an_import_of_such_a_family_asks_who_judges(read: Read, made: Path, store: Path, call: CommandLine) -> None:
    read()
    import_ = ("models", "import", str(made / "z"), "--name", "mine", "--like", "z")
    refused = call(*import_).err
    assert "--safety-checker" in refused
    assert "--no-safety-checker" in refused
    assert call(*import_, "--safety-checker", "strict").json["family"] == "z-image"
    mine = read().get("mine")
    assert (mine.safety_checker, mine.checker and mine.checker.name) == ("strict", STORED)
    assert judged(load(importer.ensure_imported(mine, store, load, ignore))).flagged
