"""`huafang models`: damaged files are found without a farm, and licences are accepted."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from api.queries.models import MODEL
from common.config import SHIPPED_CATALOG
from tests.support.command_line import CommandLine, Request, Response, fake_farm

WEIGHTS = Path("mini-zh/unet/diffusion_pytorch_model.safetensors")


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def cut_short(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip_a_bit, "the sha256 of unet/diffusion_pytorch_model.safetensors"),
    "cut short": (cut_short, "the sha256 of unet/diffusion_pytorch_model.safetensors"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "its folder unet holds no weights"),
    "no vocabulary": (
        lambda folder: (folder / "mini-zh/tokenizer/tokenizer.json").unlink(),
        "tokenizer/tokenizer.json is missing",
    ),
    "no folder": (lambda folder: shutil.rmtree(folder / "mini-zh"), "there is no folder"),
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    shutil.copytree(SHIPPED_CATALOG.parent, tmp_path / "models", dirs_exist_ok=True)
    monkeypatch.setenv("HUAFANG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HUAFANG_CATALOG", str(tmp_path / "models" / "catalog.toml"))
    return CommandLine(capsys)


def test_what_loads_is_ok_if_its_checksums_are_known(tmp_path: Path) -> None:
    """The shipped model; the same without checksums; and complete files that do not fit together. To find that out
    needs neither tables nor queues.
    """
    models = shutil.copytree(SHIPPED_CATALOG.parent, tmp_path / "models")
    shipped = (models / "catalog.toml").read_text()
    entry = shipped[shipped.index("[models.mini-zh]") : shipped.index("[models.mini-zh.sha256]")]
    for name in ("bare", "misfit"):
        shipped += "\n" + entry.replace("models.mini-zh", f"models.{name}").replace("./mini-zh", f"./{name}")
        shutil.copytree(models / "mini-zh", models / name)
    (models / "catalog.toml").write_text(shipped)
    config = models / "misfit/text_encoder/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 9}))
    code = """
import sys
from cli.main import main
try:
    main(["--format=json", "models", "verify", "mini-zh", "bare", "misfit"])
except SystemExit:
    sys.exit([n for n in ("fastapi", "sqlalchemy", "celery", "boto3", "torch") if n in sys.modules] or 0)
"""
    environment = {**os.environ, "HUAFANG_HOME": str(tmp_path), "HUAFANG_CATALOG": str(models / "catalog.toml")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {each["model"]: (each["verdict"], each["details"]) for each in json.loads(done.stdout)}
    assert found["mini-zh"] == ("ok", [])
    assert found["bare"][0] == "unchecked"
    assert (found["misfit"][0], "text_encoder lacks" in found["misfit"][1][0]) == ("bad", True)
    assert [line.partition(" the ")[0] for line in done.stderr.splitlines()] == ["huafang: misfit:"]


def test_files_are_verified_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from worker.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "verify", "--files-only", "mini-zh"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, '{"mini-zh": null}\n'), done.stderr


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(call: CommandLine, tmp_path: Path, damage: str) -> None:
    do, expected = DAMAGES[damage]
    do(tmp_path / "models")
    done = call("models", "verify", "mini-zh")
    assert done.code == 1
    assert done.json[0]["verdict"] == "bad"
    assert expected in "; ".join(done.json[0]["details"])
    assert "mini-zh" in done.err


def test_doctor_finds_damage_too(call: CommandLine, tmp_path: Path) -> None:
    flip_a_bit(tmp_path / "models")
    done = call("doctor")
    assert done.code == 1
    assert [found["about"] for found in done.json if found["verdict"] == "fail"] == ["mini-zh"]


def test_of_a_model_on_the_hub_the_workers_report(call: CommandLine) -> None:
    alone = call("models", "verify", "zh-v0")
    assert (alone.code, alone.json[0]["verdict"]) == (0, "not here")

    availability: dict = {"resident_on": [], "refusals": [{"worker": "gpu-1", "reason": "accept its licence"}]}
    model = {"name": "zh-v0", "availability": availability}
    with fake_farm(lambda request: Response(body={"items": [model]})) as farm:
        assert "accept its licence" in call("--url", farm.url, "models", "verify", "zh-v0").json[0]["details"][0]
        availability |= {"resident_on": ["gpu-1"], "refusals": []}
        assert "resident on gpu-1" in call("--url", farm.url, "models", "verify", "zh-v0").json[0]["details"][0]


def test_a_model_that_is_not_in_the_catalogue(call: CommandLine) -> None:
    done = call("models", "verify", "nowhere")
    assert done.code == 2
    assert "mini-zh" in done.err


def test_a_catalogue_that_cannot_be_read(call: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "models" / "catalog.toml").write_text("default = [")
    done = call("models", "verify")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1


BOUND = {**MODEL, "licence_accepted_at": None}


class Person(io.StringIO):
    """Answers at a terminal."""

    def isatty(self) -> bool:
        return True


def accept_licence(request: Request) -> Response:
    return Response(body={"items": [BOUND]} if request.method == "GET" else MODEL)


def test_a_licence_is_shown_and_accepted_by_a_person(call: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_farm(accept_licence) as farm:
        there = ("--url", farm.url, "--key=k", "--format=json")
        monkeypatch.setattr("sys.stdin", Person("n\n"))
        refused = call("models", "accept", "zh-v0", *there)
        assert (refused.code, "renders nothing with zh-v0 for you" in refused.err) == (1, True)
        monkeypatch.setattr("sys.stdin", io.StringIO())
        nobody = call("models", "accept", "zh-v0", *there)
        assert (nobody.code, "models accept zh-v0 --yes" in nobody.err) == (2, True)
        assert [request.method for request in farm.requests] == ["GET", "GET"]

        monkeypatch.setattr("sys.stdin", Person("y\n"))
        done = call("models", "accept", "zh-v0", *there)
        assert (done.code, done.json) == (0, MODEL)
        assert all(text in done.err for text in (*MODEL["restrictions"], MODEL["licence_url"], "2022-08-22"))
        assert call("models", "accept", "zh-v0", "--yes", *there).code == 0
        accepted = [request for request in farm.requests if request.method == "POST"]
        assert [request.path for request in accepted] == ["/v1/models/zh-v0/licence"] * 2
        assert accepted[0].body == {"version": "2022-08-22"}


def test_terms_alone_must_be_accepted(call: CommandLine) -> None:
    bound = MODEL | {
        "restrictions": [],
        "licence_terms": ["must not be used commercially"],
        "licence_accepted_at": None,
    }
    with fake_farm(lambda request: Response(body={"items": [bound]})) as farm:
        done = call("models", "accept", "zh-v0", "--url", farm.url, "--key=k", "--format=json")
    assert done.code == 2
    assert "It must not be used commercially." in done.err


def test_a_licence_without_restrictions_is_only_shown(call: CommandLine) -> None:
    free = MODEL | {"restrictions": [], "licence_accepted_at": None}
    with fake_farm(lambda request: Response(body={"items": [MODEL, free | {"name": "mini-zh"}]})) as farm:
        there = ("--url", farm.url, "--key=k", "--format=human")
        assert "needs not be" in call("models", "accept", "mini-zh", *there).out
        shown = call("models", "show", "zh-v0", *there).out
        for text in (MODEL["restrictions"][0], "in steps of 8", "ddim, lms", "inpaint", "negative prompt, guidance"):
            assert text in shown
        assert call("models", "show", "zh-v9", *there).code == 4
    assert {request.method for request in farm.requests} == {"GET"}
