"""Imports: once, also after a crash; components shared on disk and in memory; code in checkpoints never runs."""

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import Engine

from common.catalog import catalog, manifest
from common.catalog.catalog import Model
from common.catalog.families import families
from common.config import SHIPPED_CATALOG, Settings
from common.errors import ModelRefused
from common.recipes import token_counter
from tests.integration.models.test_cli import Evil, render, render_with
from tests.support import checkpoints
from tests.support.command_line import CommandLine
from tests.support.twins import Twin, qwen_image, z_image
from worker.models import cli, importer
from worker.models import store as model_store
from worker.models.manager import ModelManager
from worker.pipelines import base, registry
from worker.watchdog import Watchdog, limits

WEIGHTS = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("today") / "tiny")


@pytest.fixture(scope="module")
def of_2022(today: Path) -> Path:
    return checkpoints.as_in_2022(shutil.copytree(today, today.with_name("of-2022")))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def load(model: Model) -> base.Pipeline:
    return registry.load(model, "cpu", threads=1)


def ignore(phase: str, done: int, total: int) -> None:
    """A report of progress."""


def import_(store: Path, folder: Path, name: str = "tiny", **changes: Any) -> Model:
    return importer.ensure_imported(checkpoints.entry(folder, name=name, **changes), store, load, ignore)


def inode(folder: Path, component: str) -> int:
    return next(file for file in (folder / component).iterdir() if file.suffix == ".safetensors").stat().st_ino


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), "utf-8")


# Once, and the same


def test_a_checkpoint_of_2022_renders_the_same_to_the_bit_before_and_after(
    today: Path, of_2022: Path, store: Path
) -> None:
    unconverted = render(of_2022)
    here = import_(store, of_2022)
    assert render(here.source_path, sha256=here.sha256) == unconverted == render(today)
    assert all((store / "tiny" / f"{weights}.safetensors").is_file() for weights in WEIGHTS)
    assert not list(store.rglob("*.bin"))

    phases: list[str] = []
    again = importer.ensure_imported(
        checkpoints.entry(of_2022), store, load, lambda phase, done, of: phases.append(phase)
    )
    assert (again, phases) == (here, [])


def test_the_api_counts_the_tokens_of_an_imported_model(of_2022: Path, store: Path) -> None:
    model = checkpoints.entry(of_2022, import_path=store / "tiny")
    assert token_counter.counter_for(model) is None
    here = import_(store, of_2022)
    counter = token_counter.counter_for(replace(model, import_path=here.source_path, source_path=None))
    pipe = load(here)._pipe  # type: ignore[attr-defined]
    for prompt in ("红色的圆形，黑色背景", "a b c [SEP] 猫", ""):
        assert counter.count(prompt).tokens == len(pipe.tokenizer(prompt).input_ids)


def test_safetensors_in_a_folder_are_read_in_place(today: Path, store: Path) -> None:
    model = checkpoints.entry(today)
    assert importer.ensure_imported(model, store, load, ignore) is model
    assert not store.exists()


def test_another_checkpoint_in_the_same_folder_is_another_import(of_2022: Path, store: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(of_2022, tmp_path / "mine")
    first = import_(store, folder)
    weights = torch.load(folder / "unet/diffusion_pytorch_model.bin")
    torch.save({**weights, "conv_in.bias": weights["conv_in.bias"] + 1}, folder / "unet/diffusion_pytorch_model.bin")
    assert import_(store, folder).revision != first.revision


def test_an_import_without_the_safety_checker_is_none_for_an_entry_that_wants_it(of_2022: Path, store: Path) -> None:
    """The operator first turned it off."""
    import_(store, of_2022, safety_checker=False)
    assert not (store / "tiny" / "safety_checker").exists()
    here = import_(store, of_2022)
    assert (store / "tiny" / "safety_checker").is_dir()
    assert render(here.source_path, sha256=here.sha256) == render(of_2022)


# Shared


def family(today: Path, folder: Path) -> list[Path]:
    """Three that differ in the UNet, and in the path that each config.json names."""
    members = []
    for number in range(3):
        member = shutil.copytree(today, folder / f"v{number}")
        weights = load_file(member / "unet/diffusion_pytorch_model.safetensors")
        weights["conv_in.bias"] += number
        save_file(weights, member / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
        config = member / "vae/config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": str(member)}))
        members.append(checkpoints.as_pickles(member))
    return members


@contextmanager
def manager_of(models: list[Model], settings: Settings, database: Engine) -> Iterator[ModelManager]:
    watchdog = Watchdog(limits(settings, "cpu"), lambda reason: None)
    manager = ModelManager(models, settings, {"device": "cpu"}, database, watchdog, "w", lambda fault: None)
    yield manager
    manager.close()


def test_shared_components_are_stored_once_and_loaded_once(
    today: Path, settings: Settings, database: Engine, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"device": "cpu", "torch_threads": 1})
    store = settings.model_store
    folders = family(today, tmp_path)
    models = [
        checkpoints.entry(folder, name=folder.name, microbatch=1, import_path=store / folder.name) for folder in folders
    ]
    with manager_of(models, settings, database) as manager:
        first, second, third = (manager.get(model.name) for model in models)
        unets = {inode(store / model.name, "unet") for model in models}
        shared = {part: {inode(store / model.name, part) for model in models} for part in ("vae", "text_encoder")}
        assert (len(unets), [len(found) for found in shared.values()]) == (3, [1, 1])
        assert len(list((store / manifest.COMPONENTS).iterdir())) == 6 + 3
        made = manifest.read_all(store)
        assert made[0].shared_with(made)["vae"] == ["v1", "v2"]
        assert "unet" not in made[0].shared_with(made)

        pipes = [each._pipe for each in (first, second, third)]  # type: ignore[attr-defined]
        for part in ("vae", "text_encoder", "safety_checker"):
            assert len({id(getattr(pipe, part)) for pipe in pipes}) == 1
        for part in ("unet", "tokenizer"):
            assert len({id(getattr(pipe, part)) for pipe in pipes}) == 3
        unet = first.components["v0", "unet"]
        common = sum(first.components.values()) - unet
        alone = {model.name: render(store / model.name) for model in models}
    del pipes, first, second, third

    # The memory holds the shared components and two UNets, not three whole models.
    room = settings.model_copy(update={"model_memory": common + unet * 5 // 2})
    with manager_of(models, room, database) as manager:
        for model, resident in zip(models, [("v0",), ("v0", "v1"), ("v1", "v2")], strict=True):
            manager.get(model.name)
            assert manager.resident == resident
        gc.collect()
        for name in manager.resident:  # v0 is evicted, without the shared components
            assert render_with(manager.get(name)) == alone[name]


def test_components_that_no_model_has_are_deleted(today: Path, store: Path, tmp_path: Path) -> None:
    first, second, _ = family(today, tmp_path)
    import_(store, first, "mine")
    old = (store / "mine" / "unet").resolve()
    import_(store, second, "mine")
    assert not old.exists()
    assert len(list((store / manifest.COMPONENTS).iterdir())) == 7


# Interrupted, or at the same time


def start(store: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m worker import`, which prints its progress as lines of JSON."""
    environment = {**os.environ, "HUAFANG_MODELS_DIR": str(store), "HUAFANG_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "worker", "import", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=90)
    last: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert (process.returncode == 0) == ("error" not in last)
    return last


def test_a_killed_import_leaves_no_model_and_the_next_one_completes(of_2022: Path, store: Path) -> None:
    process = start(store, str(of_2022), "--name", "tiny")
    for line in process.stdout:
        if json.loads(line)["phase"] == "check":  # all components are stored, and the test render starts
            break
    process.kill()
    process.wait(10)
    process.stdout.close()
    assert manifest.read_all(store) == []
    assert "tiny" not in catalog.read(SHIPPED_CATALOG, store).models
    parts = sorted((store / manifest.COMPONENTS).iterdir())
    assert len(parts) == 7

    here = import_(store, of_2022)
    assert sorted((store / manifest.COMPONENTS).iterdir()) == parts
    assert {path.name for path in store.iterdir()} == {".lock", ".parts", "tiny"}
    assert render_with(load(here)) == render(of_2022)


def test_a_model_is_restored_if_its_replacement_was_killed(of_2022: Path, store: Path) -> None:
    """Killed between its two renames."""
    import_(store, of_2022)
    (store / "tiny").rename(store / ".old-tiny")
    model_store.recover(store)
    assert [model.name for model in manifest.read_all(store)] == ["tiny"]


def test_of_two_imports_at_once_one_converts_and_both_succeed(of_2022: Path, store: Path) -> None:
    process = start(store, str(of_2022), "--name", "tiny")
    first_line = process.stdout.readline()  # it has the lock
    given = dict.fromkeys(("revision", "licence", "like", "safety_checker", "no_safety_checker", "dry_run"))
    settings = Settings(home=store.parent, models_dir=store, device="cpu", torch_threads=1)
    second = cli.import_one(settings, Namespace(source=str(of_2022), name="tiny", **given))
    first = result(process)
    assert "phase" in first_line
    assert (first["had_it"], second["had_it"]) == (False, True)
    assert first["revision"] == second["revision"]


def test_a_worker_that_waited_for_an_import_does_not_repeat_it(
    of_2022: Path, store: Path, aside: ThreadPoolExecutor
) -> None:
    model, phases, waits = checkpoints.entry(of_2022), set[str](), threading.Event()

    def report(phase: str, done: int, total: int) -> None:
        phases.add(phase)
        waits.set()

    with importer.import_lock(model, store, ignore):
        waiting = aside.submit(importer.ensure_imported, model, store, load, report)
        assert waits.wait(60)
        imported = importer.import_model(model, store, load, ignore)
    assert waiting.result(60).revision == imported.revision
    assert phases == {"wait"}


# Damaged, or malicious


def flip_a_bit(file: Path) -> None:
    with file.open("r+b") as content:
        content.seek(-5, os.SEEK_END)
        byte = content.read(1)[0]
        content.seek(-5, os.SEEK_END)
        content.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("published", "name"),
    [("LMSDiscreteScheduler", "lms"), ("DPMSolverMultistepScheduler", "dpm++"), ("LCMScheduler", "lcm")],
)
def test_an_import_takes_the_scheduler_that_the_model_was_published_with(
    today: Path, store: Path, tmp_path: Path, published: str, name: str
) -> None:
    folder = shutil.copytree(today, tmp_path / "mine")
    change(folder / "scheduler/scheduler_config.json", _class_name=published)
    assert imported_as_mine(folder, store).scheduler == name
    (folder / "scheduler/scheduler_config.json").write_text("{}", "utf-8")
    change(folder / "model_index.json", scheduler=["diffusers", published])
    assert imported_as_mine(folder, store).scheduler == name


@pytest.mark.parametrize("published", ["DPMSolverSDEScheduler", "FlowMatchEulerDiscreteScheduler", "MyScheduler"])
def test_a_model_with_another_scheduler_is_refused(today: Path, store: Path, tmp_path: Path, published: str) -> None:
    """Any other one might draw noise with it."""
    folder = shutil.copytree(today, tmp_path / "mine")
    change(folder / "scheduler/scheduler_config.json", _class_name=published)
    with pytest.raises(ModelRefused) as refused:
        imported_as_mine(folder, store)
    assert f"The model mine is refused: its scheduler is a {published}, not one of DDIMScheduler, " in str(
        refused.value
    )
    assert "LCMScheduler" in str(refused.value)
    assert manifest.read(store / "mine") is None
    assert imported_as_mine(folder, store, scheduler="euler").scheduler == "euler"  # the operator's choice


def imported_as_mine(folder: Path, store: Path, **entry: Any) -> Model:
    """Import it under a name that no catalogue has."""
    entry = {"source": str(folder), "description": "", "licence_url": "", "steps": 3, "guidance": 2.0, **entry}
    model = checkpoints.entry(folder, name="mine")
    with importer.import_lock(model, store, ignore):
        importer.import_model(model, store, load, ignore, entry)
    return catalog.read(SHIPPED_CATALOG, store).get("mine")


def test_a_flipped_bit_is_found_and_repaired_by_another_import(
    of_2022: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MODELS_DIR": str(store), "HOME": str(store.parent), "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"HUAFANG_{name}", value)
    call = CommandLine(capsys)
    made = call("models", "import", str(of_2022), "--name", "mine", "--licence", "MIT").json
    assert (made["licence"], made["family"], made["shared"]) == ("MIT", "stable-diffusion-zh", {})
    model = catalog.read(SHIPPED_CATALOG, store).get("mine")
    before = render_with(load(importer.ensure_imported(model, store, load, ignore)))
    flip_a_bit(store / "mine/unet/diffusion_pytorch_model.safetensors")
    done = call("models", "verify", "mine")
    assert (done.code, done.json[0]["verdict"]) == (1, "bad")
    assert done.json[0]["details"] == [
        "The model mine is refused: the sha256 of unet/diffusion_pytorch_model.safetensors is not what it must be. "
        "Restore the file or import the model again."
    ]
    with pytest.raises(ModelRefused, match="the sha256 of unet/diffusion_pytorch_model"):
        load(importer.ensure_imported(model, store, load, ignore))

    assert not model_store.is_intact(manifest.read(store / "mine"), store)
    with importer.import_lock(model, store, ignore):
        importer.import_model(model, store, load, ignore)
    assert catalog.read(SHIPPED_CATALOG, store).get("mine") == model
    assert render_with(load(importer.ensure_imported(model, store, load, ignore))) == before


def in_a_bin(folder: Path, evil: Evil) -> Path:
    torch.save({"a": evil}, folder / "unet/diffusion_pytorch_model.bin")
    return folder


def in_an_old_bin(folder: Path, evil: Evil) -> Path:
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"a": evil}, protocol=2))
    return folder


def beside_good_tensors(folder: Path, evil: Evil) -> Path:
    file = folder / "unet/diffusion_pytorch_model.bin"
    torch.save({**torch.load(file), "callbacks": [{"a": evil}]}, file)
    return folder


def in_the_second_pickle_of_a_zip(folder: Path, evil: Evil) -> Path:
    """A zip may have a name twice, and readers differ in which one they take."""
    file = folder / "unet/diffusion_pytorch_model.bin"
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr(next(name for name in archive.namelist() if name.endswith("data.pkl")), pickle.dumps(evil))
    return folder


def in_a_zip_in_a_zip(folder: Path, evil: Evil) -> Path:
    inner = folder / "inner.bin"
    torch.save({"a": evil}, inner)
    with zipfile.ZipFile(folder / "unet/diffusion_pytorch_model.bin", "w") as archive:
        archive.write(inner, "archive/data.pkl")
        archive.writestr("archive/version", "3")
        archive.writestr("archive/constants.pkl", pickle.dumps(evil))
    return folder


def in_a_script(folder: Path, evil: Evil) -> Path:
    """TorchScript is code by itself."""
    torch.jit.script(torch.nn.Linear(1, 1)).save(folder / "unet/diffusion_pytorch_model.bin")
    return folder


def called_safetensors(folder: Path, evil: Evil) -> Path:
    (folder / "unet/diffusion_pytorch_model.bin").unlink()
    torch.save({"a": evil}, folder / "unet/diffusion_pytorch_model.safetensors")
    return folder


def in_the_state_of_a_ckpt(folder: Path, evil: Evil) -> Path:
    torch.save({"state_dict": {"a": evil}}, folder / "evil.ckpt")
    return folder / "evil.ckpt"


HIDING: list[Callable[[Path, Evil], Path]] = [
    in_a_bin,
    in_an_old_bin,
    beside_good_tensors,
    in_the_second_pickle_of_a_zip,
    in_a_zip_in_a_zip,
    in_a_script,
    called_safetensors,
    in_the_state_of_a_ckpt,
]


@pytest.mark.parametrize("hide", HIDING)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Duplicate name")
def test_code_in_a_checkpoint_is_refused_and_never_runs(
    today: Path, of_2022: Path, store: Path, tmp_path: Path, hide: Callable[[Path, Evil], Path]
) -> None:
    trace = tmp_path / "trace"
    source = hide(shutil.copytree(of_2022, tmp_path / "evil"), Evil(trace))
    model = checkpoints.entry(source)
    with pytest.raises(ModelRefused) as raised, importer.import_lock(model, store, ignore):
        importer.import_model(model, store, load, ignore, like=checkpoints.entry(today))
    assert raised.value.message.startswith("The model tiny is refused: ")
    assert "\n" not in raised.value.message
    assert not trace.exists()
    assert manifest.read_all(store) == []


# One file


def as_left_by_training(file: Path, weights: dict[str, torch.Tensor]) -> Path:
    torch.save({"state_dict": weights, "global_step": 7, "epoch": None}, file)
    return file


def as_safetensors(file: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, file)
    return file


@pytest.mark.parametrize(("name", "write"), [("it.ckpt", as_left_by_training), ("it.safetensors", as_safetensors)])
def test_a_single_file_is_split_and_links_the_rest_to_a_like_model(
    today: Path, store: Path, tmp_path: Path, name: str, write: Callable[[Path, dict[str, torch.Tensor]], Path]
) -> None:
    file = write(tmp_path / name, checkpoints.as_one_file(today))
    model = checkpoints.entry(file)
    with importer.import_lock(model, store, ignore):
        made = importer.import_model(model, store, load, ignore, like=checkpoints.entry(today))
    assert render_with(load(importer.with_local_path(model, store, made))) == render(today)


def test_a_single_file_that_is_something_else_is_refused(today: Path, store: Path, tmp_path: Path) -> None:
    like = checkpoints.entry(today)
    reasons = {
        as_safetensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}): "is no Stable Diffusion like tiny",
        as_left_by_training(tmp_path / "lacking.ckpt", lacking(today)): "is no Stable Diffusion like tiny",
        today / "model_index.json": "model_index.json is none of .bin, .ckpt, .pt, .pth, .safetensors",
    }
    for file, reason in reasons.items():
        model = checkpoints.entry(file)
        with pytest.raises(ModelRefused, match=reason), importer.import_lock(model, store, ignore):
            importer.import_model(model, store, load, ignore, like=like)
    with pytest.raises(ModelRefused, match="name a model of the same kind by --like"):
        importer.import_model(checkpoints.entry(tmp_path / "lacking.ckpt"), store, load, ignore)


def lacking(folder: Path) -> dict[str, torch.Tensor]:
    weights = checkpoints.as_one_file(folder)
    del weights["model.diffusion_model.out.2.weight"]
    return weights


# What the files tell


@pytest.mark.parametrize("twin", [z_image, qwen_image], ids=lambda twin: twin.NAME)
def test_the_files_tell_the_family_and_the_family_the_defaults(twin: Twin, store: Path, tmp_path: Path) -> None:
    given = {
        "source": str(twin.make(tmp_path / "tiny")),
        "description": "",
        "licence_url": "",
        "steps": 7,
        "safety_checker": False,
    }
    entry = {**given, "width": 64, "height": 64}
    model = catalog.model_from_entry("mine", {**cli.PLACEHOLDERS, **entry}, store)
    with importer.import_lock(model, store, ignore):
        importer.import_model(model, store, load, ignore, entry)
    known = {**families()[twin.NAME].defaults, "family": twin.NAME, "licence": "unknown"}
    made = catalog.read_entry("mine", store)
    assert made.pop("revision")
    assert made == {**known, **entry}


def test_the_operators_family_counts_also_when_a_worker_repeats_the_import(today: Path, store: Path) -> None:
    """A LoRA for all models of a family would else be for others."""
    model = imported_as_mine(today, store, family="stable-diffusion-ja")
    assert model.family == "stable-diffusion-ja"  # by its files it is the Chinese one
    (store / "mine" / manifest.MANIFEST).unlink()
    importer.ensure_imported(model, store, load, ignore)
    assert manifest.read(store / "mine").family == "stable-diffusion-ja"
    assert catalog.read(SHIPPED_CATALOG, store).get("mine").family == "stable-diffusion-ja"


@pytest.mark.parametrize("pipeline", ["QwenImageEditPlusPipeline", "FluxKontextPipeline", "WanPipeline"])
def test_a_folder_with_a_pipeline_of_no_family_is_refused_by_name(store: Path, pipeline: str) -> None:
    """Its files are not even there."""
    folder = store.with_name("other")
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    entry = {"source": str(folder), "description": "", "licence_url": ""}
    model = catalog.model_from_entry("mine", {**cli.PLACEHOLDERS, **entry}, store)
    with (
        pytest.raises(ModelRefused, match=f"it is for {pipeline}, which "),
        importer.import_lock(model, store, ignore),
    ):
        importer.import_model(model, store, load, ignore, entry)
