"""`huafang models prove`: a model beside plain diffusers on this device, and what cannot be compared."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import Invalid, ModelRefused
from tests.support import checkpoints
from tests.support.command_line import CommandLine
from tests.support.twins import Twin, twins
from worker.models import prove
from worker.models.prove import Report
from worker.pipelines.families.stable_diffusion import Family

SILENT: Report = lambda phase, done, total: None  # noqa: E731
STEPS = 2
AS_PUBLISHED = {"token_limit": 77}  # the tokenizer's own, to which diffusers pads


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("HUAFANG_HOME", str(tmp_path))
    monkeypatch.setenv("HUAFANG_MODELS_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("HUAFANG_TORCH_THREADS", "1")
    return CommandLine(capsys)


def test_the_shipped_model_is_what_plain_diffusers_draws(call: CommandLine) -> None:
    done = call("models", "prove", "mini-zh", f"--steps={STEPS}")
    assert done.code == 0, done.err
    found = done.json
    assert found["levels_max"] <= 1
    assert (found["model"], found["steps"], found["precision"], found["compiled"]) == ("mini-zh", STEPS, "fp32", False)
    assert (found["kind"], found["threads"], found["batch_size"]) == ("cpu", 1, 8)
    assert min(found["images_per_s"], found["images_per_s_at_batch_size"], found["load_s"]) > 0
    assert 0 < found["bytes_loaded"] <= found["bytes_at_most"]
    assert all(found[name] for name in ("torch", "diffusers", "huafang"))
    phases = ("loading", "rendering", "measuring", "loading plain diffusers", "rendering with plain diffusers")
    assert [line for line in done.err.splitlines() if line.startswith("mini-zh ")] == [
        f"mini-zh {phase}" for phase in phases
    ]


@pytest.mark.parametrize("twin", twins(), ids=lambda twin: twin.NAME)
def test_each_family_is_called_as_its_card_says(tmp_path: Path, twin: Twin) -> None:
    """Also with a negative prompt, where it has one."""
    model = replace(twin.entry(twin.make(tmp_path)), microbatch=1)
    if model.facts.negative_prompt != "no":
        model = replace(model, negative_prompt="黑色背景")
    if "inpaint" in model.family:
        with pytest.raises(Invalid, match="from a picture and a mask only"):
            prove.prove(model, "cpu", 1, STEPS, SILENT)
        return
    assert prove.prove(model, "cpu", 1, STEPS, SILENT)["levels_max"] <= 1


def test_a_model_that_draws_otherwise_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the family's code: the negative prompt in place of the prompt."""
    encode = Family.encode

    def wrong(family: Family, pipe: object, recipes: list, is_guided: bool) -> dict:
        swapped = {"prompt": recipes[0].negative_prompt, "negative_prompt": recipes[0].prompt}
        return encode(family, pipe, [recipe.model_copy(update=swapped) for recipe in recipes], is_guided)

    model = checkpoints.entry(
        checkpoints.make(tmp_path, "bert"), **AS_PUBLISHED, negative_prompt="黑色背景", microbatch=2
    )
    right = prove.prove(model, "cpu", 1, STEPS, SILENT)
    assert right["levels_max"] <= 1
    assert right["batch_size"] == 2
    monkeypatch.setattr(Family, "encode", wrong)
    assert prove.prove(model, "cpu", 1, STEPS, SILENT)["levels_max"] >= 8


@pytest.mark.parametrize("levels", [1, -1])
def test_a_level_more_or_less_is_one_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: int) -> None:
    to_pixels = Family.to_pixels
    monkeypatch.setattr(Family, "to_pixels", lambda *given: to_pixels(*given) + levels * 2 / 255)
    model = checkpoints.entry(checkpoints.make(tmp_path, "bert"), **AS_PUBLISHED, microbatch=1)
    found = prove.prove(model, "cpu", 1, STEPS, SILENT)
    assert found["levels_max"] == 1
    assert 0.5 < found["levels_mean"] <= 1


def test_what_the_safety_checker_flags_is_compared_all_the_same(tmp_path: Path) -> None:
    model = checkpoints.entry(checkpoints.make(tmp_path, "bert", strict=True), **AS_PUBLISHED, microbatch=1)
    assert prove.prove(model, "cpu", 1, STEPS, SILENT)["levels_max"] <= 1


def test_refusals_are_sentences(call: CommandLine, tmp_path: Path) -> None:
    absent = call("models", "prove", "zh-v0")
    assert absent.code == 2
    assert "zh-v0 is not on this host. Run `huafang models import zh-v0` first." in absent.err
    unknown = call("models", "prove", "nothing")
    assert unknown.code == 2
    assert "there is no model 'nothing'" in unknown.err
    too_many = call("models", "prove", "mini-zh", "--steps=9999")
    assert too_many.code == 2
    assert "steps" in too_many.err
    for refused in (absent, unknown, too_many):
        assert len(refused.err.splitlines()) == 1


def test_a_folder_that_diffusers_cannot_draw_with_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.make(tmp_path, "bert")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"BertTokenizer"', '"NoTokenizer"'))
    with pytest.raises(ModelRefused, match="tiny cannot be proved: plain diffusers cannot draw with it"):
        prove.prove(checkpoints.entry(folder, microbatch=1), "cpu", 1, STEPS, SILENT)
