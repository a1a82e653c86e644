"""Downloads from the hub: no byte twice, and a sentence for every refusal. Against a small hub in this process."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import close_session, constants

from common.catalog import manifest
from common.catalog.catalog import model_from_entry
from common.disks import RESERVE_BYTES
from common.errors import ModelRefused
from tests.support import checkers, checkpoints
from tests.support.command_line import run_process as command_line
from tests.support.small_disk import small_disk
from tests.support.twins import z_image
from worker.models.hub import ATTEMPTS, HubFile, RepoFiles, download, list_files, select_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = "unet/diffusion_pytorch_model.bin"
LEFT_OUT = {"README.md", "model.ckpt", "unet/diffusion_pytorch_model.fp16.bin"}
ENTRY = {
    "family": "stable-diffusion-zh",
    "licence": "none",
    "licence_url": "",
    "description": "noise",
    "width": 64,
    "height": 64,
    "steps": 3,
    "scheduler": "lms",
    "guidance": 5.0,
}
MB = 1 << 20


class Hub(ThreadingHTTPServer):
    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.sums = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        self.supports_ranges = True  # otherwise it sends the whole file
        self.stalls_at: int | None = None  # bytes of the large file after which it sends no more
        self.breaks_after: list[int] = []  # bytes after which the connection breaks, in the next answers
        self.stalled, self.resumed = threading.Event(), threading.Event()
        self.fetched: list[tuple[str, str | None]] = []  # paths, with their Range headers

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if "/gone" in path:
            self._answer(404, error="RepoNotFound")
        elif "tiny/revision/" in path and not path.endswith(("main", COMMIT)):
            self._answer(404, error="RevisionNotFound")
        elif path.startswith("api/models/"):
            self._answer(200, json.dumps(self._about()).encode())
        elif "/gated/resolve/" in path:
            self._answer(403, error="GatedRepo")
        else:
            self._send(path.partition(f"/{COMMIT}/")[2] or path.partition("/main/")[2])

    def _about(self) -> dict[str, Any]:
        files = [
            {
                "rfilename": path,
                "size": len(content),
                "lfs": {"size": len(content), "sha256": self.server.sums[path], "pointerSize": 1},
            }
            for path, content in self.server.files.items()
        ]
        return {"id": "a/b", "sha": COMMIT, "siblings": files, "cardData": {"license": "creativeml-openrail-m"}}

    def _send(self, path: str) -> None:
        if path not in self.server.files:
            return self._answer(404, error="EntryNotFound")
        asked, content = self.headers.get("Range"), self.server.files[path]
        self.server.fetched.append((path, asked))
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.supports_ranges else 0
        self._head(206 if begin else 200, len(content) - begin)
        stops = self.server.stalls_at if path == LARGE and not asked else None
        if self.server.breaks_after:
            self.wfile.write(content[begin : begin + self.server.breaks_after.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(content[begin:stops])
        if stops:
            self.wfile.flush()
            self.server.stalled.set()
            self.server.resumed.wait(60)
            self.close_connection = True

    def _answer(self, status: int, content: bytes = b"", error: str = "") -> None:
        self._head(status, len(content), error)
        self.wfile.write(content)

    def _head(self, status: int, length: int, error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", "application/json")
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint of 2022, with the other files of such a repository."""
    folder = checkpoints.as_in_2022(checkpoints.make(tmp_path_factory.mktemp("published")))
    torch.save({**torch.load(folder / LARGE), "filler.position_ids": torch.zeros(6 * MB)}, folder / LARGE)
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return files | dict.fromkeys(LEFT_OUT, b"pickle")


@pytest.fixture
def hub(published: dict[str, bytes]) -> Iterator[Hub]:
    server = Hub(dict(published))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.resumed.set()
    server.shutdown()
    thread.join()
    server.server_close()


IMPORT = """
import json, sys
from pathlib import Path
from common.catalog.catalog import model_from_entry
from common.errors import ModelRefused
from worker.models import importer
from worker.pipelines import registry

def load(model):
    return registry.load(model, "cpu", 1)

store, entry = Path(sys.argv[1]), json.loads(sys.argv[2])
for source, revision in json.loads(sys.argv[3]):
    model = model_from_entry("tiny", {**entry, "source": source, "revision": revision}, store)
    try:
        here = importer.ensure_imported(model, store, load, lambda *progress: None)
        print(json.dumps({"revision": here.revision, "files": sorted(here.sha256)}))
    except ModelRefused as error:
        print(json.dumps(error.message))
"""


def run_import(address: str, store: Path, *models: tuple[str, str | None]) -> list[Any]:
    """In a process of its own: the hub's client reads its environment once."""
    process = start_import(address, store, *models)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def start_import(address: str, store: Path, *models: tuple[str, str | None]) -> subprocess.Popen[str]:
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(store / ".hub"), "HF_TOKEN": "", "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", IMPORT, str(store), json.dumps(ENTRY), json.dumps(models)],
        env={**os.environ, **settings, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_download_resumes_and_the_model_then_loads_without_the_hub(
    hub: Hub, published: dict[str, bytes], tmp_path: Path
) -> None:
    hub.stalls_at = 21 * MB
    process = start_import(hub.address, tmp_path, ("somebody/tiny", None))
    assert hub.stalled.wait(60)
    part = next(tmp_path.rglob("*.part"))
    while part.stat().st_size < 21 * MB:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert manifest.read_all(tmp_path) == []
    before, hub.fetched = {path for path, _ in hub.fetched}, []

    (made,) = run_import(hub.address, tmp_path, ("somebody/tiny", None))
    assert made["revision"] == COMMIT
    assert (LARGE, f"bytes={21 * MB}-") in hub.fetched
    fetched = [path for path, _ in hub.fetched]
    assert before & set(fetched) == {LARGE}
    assert before | set(fetched) == set(published) - LEFT_OUT
    assert not list(tmp_path.rglob("*.part"))

    nowhere = "http://127.0.0.1:1"
    again, pinned, other = run_import(
        nowhere, tmp_path, ("somebody/tiny", None), ("somebody/tiny", COMMIT), ("somebody/other", None)
    )
    assert again == pinned == made
    assert other.startswith("The model tiny is refused: the hub cannot be reached")
    assert "local folder" in other


def test_a_hub_without_ranges_sends_the_whole_file(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces what was downloaded before, and no byte counts twice."""
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.address}/{{repo_id}}/{{revision}}/{{filename}}"
    )
    hub.supports_ranges, data, counts = False, bytes(range(256)) * 8, list[int]()
    hub.files = {"weights.bin": data}
    (tmp_path / "weights.bin.part").write_bytes(data[:1000])
    file = HubFile("weights.bin", len(data), hashlib.sha256(data).hexdigest())
    model = model_from_entry("tiny", {**ENTRY, "source": "somebody/tiny"}, tmp_path)
    download(model, RepoFiles(COMMIT, (file,), None), tmp_path, counts.append)
    assert (tmp_path / "weights.bin").read_bytes() == data
    assert hub.fetched == [("weights.bin", "bytes=1000-")]
    assert sum(counts) == len(data)


@pytest.mark.parametrize(
    ("breaks", "is_whole"),
    [([100] * (3 * ATTEMPTS), True), ([0] * (ATTEMPTS - 1), True), ([100] + [0] * (ATTEMPTS - 1), False)],
    ids=["with bytes in between", "not often enough", "without a byte in between"],
)
def test_a_connection_that_breaks_may_do_so_as_long_as_bytes_arrive(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: list[int], is_whole: bool
) -> None:
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.address}/{{repo_id}}/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr("worker.models.hub.RETRY_S", 0)
    monkeypatch.setattr("worker.models.hub.CHUNK_BYTES", 100)  # what arrives at a time
    hub.breaks_after, data = breaks, bytes(range(256)) * 8
    hub.files = {"weights.bin": data}
    file = HubFile("weights.bin", len(data), hashlib.sha256(data).hexdigest())
    model = model_from_entry("tiny", {**ENTRY, "source": "somebody/tiny"}, tmp_path)
    with nullcontext() if is_whole else pytest.raises(ModelRefused, match="the hub cannot be reached"):
        download(model, RepoFiles(COMMIT, (file,), None), tmp_path, lambda count: None)
    assert hub.breaks_after == []
    assert [path.read_bytes() == data for path in tmp_path.glob("weights.bin")] == [True] * is_whole


def test_what_is_no_model_of_a_farm_is_refused_before_its_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    index, config = (json.loads(hub.files[name]) for name in ("model_index.json", "unet/config.json"))

    def refused_with(name: str, content: dict[str, Any]) -> tuple[str, list[str]]:
        hub.files[name], hub.fetched = json.dumps(content).encode(), []
        hub.sums[name] = hashlib.sha256(hub.files[name]).hexdigest()
        (message,) = run_import(hub.address, tmp_path / content["_class_name"], ("somebody/tiny", None))
        return message, [path for path, _ in hub.fetched]

    message, fetched = refused_with("unet/config.json", {**config, "in_channels": 9})
    assert "unet is an inpainting model (9 input channels)" in message
    assert fetched[0] == "model_index.json"
    assert not any(path.endswith(".bin") for path in fetched)
    message, fetched = refused_with("model_index.json", {**index, "_class_name": "StableDiffusion3Pipeline"})
    assert "it is for StableDiffusion3Pipeline, which this farm does not run" in message
    assert fetched == ["model_index.json"]


@pytest.mark.needs("small_disk")
def test_a_download_that_fills_the_disk_is_deleted(hub: Hub, tmp_path: Path) -> None:
    """And refused before its weights where it would have."""
    hub.stalls_at = 21 * MB
    with small_disk(tmp_path, RESERVE_BYTES + 100 * MB) as disk:
        store = disk.outside / "store"
        with start_import(hub.address, store, ("somebody/tiny", None)) as process:
            assert hub.stalled.wait(60)
            disk.fill()
            hub.resumed.set()
            output, errors = process.communicate(timeout=90)
        assert "No space left on device" in json.loads(output), errors
        assert sum(file.stat().st_size for file in store.rglob("*") if file.is_file()) < MB

        disk.make_room()
        disk.fill(but=RESERVE_BYTES + 30 * MB)
        hub.fetched = []
        (message,) = run_import(hub.address, store, ("somebody/tiny", None))
        assert "Free some, or name another folder in HUAFANG_MODELS_DIR" in message
        assert not any(path.endswith(".bin") for path, _ in hub.fetched)


def test_a_damaged_download_is_deleted(hub: Hub, tmp_path: Path) -> None:
    hub.sums[LARGE] = "0" * 64
    (message,) = run_import(hub.address, tmp_path, ("somebody/tiny", None))
    assert f"{LARGE} came damaged from the hub: try again" in message
    assert not list(tmp_path.rglob(f"{LARGE}*"))


def test_refusals_of_the_hub_say_what_to_do(hub: Hub, tmp_path: Path) -> None:
    gated, gone, revision, nonsense = run_import(
        hub.address,
        tmp_path,
        ("somebody/gated", None),
        ("somebody/gone", None),
        ("somebody/tiny", "nowhere"),
        ("no such name", None),
    )
    assert "accept it at https://huggingface.co/somebody/gated and set HF_TOKEN" in gated
    assert "https://huggingface.co/somebody/gone does not exist" in gone
    assert "has no revision nowhere" in revision
    assert "does not exist" in nonsense


@pytest.mark.parametrize(("variable", "value"), [("all_proxy", "socks5://127.0.0.1:9"), ("https_proxy", "x://y")])
def test_a_proxy_that_the_client_refuses_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    model = model_from_entry("tiny", {**ENTRY, "source": "somebody/tiny", "revision": None}, tmp_path)
    close_session()  # the next request makes a new client
    with pytest.raises(ModelRefused, match="Correct or unset all_proxy"):
        list_files(model)


def test_a_dry_run_lists_the_files_to_download(hub: Hub, published: dict[str, bytes], tmp_path: Path) -> None:
    done = command_line(
        *("models", "import", "somebody/tiny", "--name", "mine", "--dry-run", "--format", "json"),
        environment={**os.environ, "HF_ENDPOINT": hub.address, "HUAFANG_HOME": str(tmp_path)},
    )
    files = {file["path"]: file["bytes"] for file in done.json}
    assert files == {path: len(content) for path, content in published.items() if path not in LEFT_OUT}
    assert f"{sum(files.values()) / 1e6:.1f} MB" in done.err
    assert hub.fetched == [("model_index.json", None)]  # which tells the family


@pytest.mark.parametrize(
    ("pipeline", "says", "flags"),
    [
        ("FluxKontextPipeline", "which edits images by instructions", ["--dry-run"]),
        ("WanPipeline", "which this farm does not run", []),
    ],
)
def test_a_pipeline_of_no_family_is_refused_by_name_before_anything_else_is_fetched(
    hub: Hub, tmp_path: Path, pipeline: str, says: str, flags: list[str]
) -> None:
    hub.files = {**hub.files, "model_index.json": json.dumps({"_class_name": pipeline}).encode()}
    done = command_line(
        *("models", "import", "somebody/tiny", "--name", "mine", *flags),
        environment={**os.environ, "HF_ENDPOINT": hub.address, "HUAFANG_HOME": str(tmp_path)},
    )
    assert done.code != 0
    assert done.err.count("is refused") == 1
    assert f"it is for {pipeline}, {says}" in done.err
    assert [path for path, _ in hub.fetched] == ["model_index.json"]


def test_the_hub_tells_the_family_of_a_model(hub: Hub, tmp_path: Path) -> None:
    """Of its index alone: the family says which other files there are to fetch."""
    folder = z_image.make(tmp_path / "published")
    hub.files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*")}
    hub.sums = {path: hashlib.sha256(content).hexdigest() for path, content in hub.files.items()}
    done = command_line(
        *("models", "import", "somebody/tiny", "--name", "mine", "--no-safety-checker"),
        *("--dry-run", "--format", "json"),
        environment={**os.environ, "HF_ENDPOINT": hub.address, "HUAFANG_HOME": str(tmp_path)},
    )
    assert {file["path"] for file in done.json} == hub.files.keys() - {"tokenizer/chat_template.jinja"}


@pytest.mark.parametrize(
    ("published", "wanted"),
    [
        (["w.bin", "w.fp16.bin", "w.fp16.safetensors", "w.non_ema.safetensors"], ["w.bin"]),
        (["w.fp16.bin", "w.fp16.safetensors", "w.bf16.safetensors"], ["w.fp16.safetensors"]),
        (["w.fp16.bin", "w.non_ema.bin"], ["w.fp16.bin"]),
        (["w.non_ema.bin"], []),
        (
            [
                "adapter_config.json",
                "w-00001-of-00002.fp16.bin",
                "w.bin.index.fp16.json",
                "w.fp16-00001-of-00002.safetensors",
                "w.fp16-00002-of-00002.safetensors",
                "w.safetensors.index.fp16.json",
            ],
            ["w.fp16-00001-of-00002.safetensors", "w.fp16-00002-of-00002.safetensors", "w.safetensors.index.fp16.json"],
        ),
        (
            [
                "w-00001-of-00001.safetensors",
                "w.safetensors.index.json",
                "w.safetensors",
                "w.safetensors.index.fp16.json",
            ],
            ["w.safetensors"],
        ),
    ],
)
def test_the_weights_are_fetched_in_one_format(published: list[str], wanted: list[str]) -> None:
    def of_the_unet(names: list[str]) -> list[str]:
        return [f"unet/{name.replace('w', 'diffusion_pytorch_model', 1)}" for name in names]

    assert select_files(of_the_unet(published), ("unet",)) == [
        "model_index.json",
        *of_the_unet(wanted),
    ]


def test_a_checker_of_the_farms_own_is_downloaded_without_the_rest_of_its_repository(
    hub: Hub, published: dict[str, bytes], tmp_path: Path
) -> None:
    checkpoints.make(tmp_path / "sd")
    models = {"mine": {"source": "./sd", "family": "stable-diffusion-zh", "safety_checker": "theirs"}}
    checkers.read(tmp_path / "catalog.toml", tmp_path, models, {"theirs": {"source": "somebody/tiny"}})
    settings = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    settings |= {"HUAFANG_HOME": str(tmp_path), "HUAFANG_CATALOG": str(tmp_path / "catalog.toml")}
    settings |= {"HUAFANG_DEVICE": "cpu", "HF_HOME": str(tmp_path / ".hub")}
    done = command_line("models", "import", "mine", "--format", "json", environment={**os.environ, **settings})
    assert done.code == 0, done.err
    assert (done.json["model"], done.json["revision"]) == ("theirs+safety-checker", COMMIT)
    wanted = {path for path in published if path.startswith(("safety_checker/", "feature_extractor/"))}
    assert {path for path, _ in hub.fetched} == wanted | {"model_index.json"}


def test_only_the_files_of_wanted_components_are_selected() -> None:
    parts = ("tokenizer", "unet", "safety_checker")
    files = [
        "README.md",
        "model.ckpt",
        "model_index.json",
        "safety_checker/config.json",
        "safety_checker/pytorch_model.bin",
        "tokenizer/special_tokens_map.json",
        "tokenizer/vocab.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
    ]
    assert sorted(select_files(files, parts)) == files[2:-1]
