"""Models that are on the hub: fetched once, and every way to be refused there is one sentence with what to do.

Against a hub of our own, which speaks as much of Hugging Face's HTTP as its client asks for.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from worker.checkpoint import PARTS, wanted

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
SAFETENSORS = len(TINY).to_bytes(8, "little") + TINY + bytes(4)
FILES = {
    "model_index.json": json.dumps({part: ["library", "Class"] for part in PARTS}).encode(),
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/config.json": b"{}",
    "text_encoder/pytorch_model.bin": b"pickle",
    "tokenizer/vocab.txt": b"[PAD]",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": SAFETENSORS,
    "unet/diffusion_pytorch_model.safetensors": SAFETENSORS,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": SAFETENSORS,
    "whole-model.ckpt": b"pickle",
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if "/gone" in path:
            self._answer(404, error="RepoNotFound")
        elif "tiny/revision/" in path and not path.endswith(("main", COMMIT)):
            self._answer(404, error="RevisionNotFound")
        elif "/tree/" in path:
            self._answer(200, json.dumps([{"type": "file", "path": f, "size": len(FILES[f]), "oid": f} for f in FILES]))
        elif path.startswith("api/models/"):
            self._answer(200, json.dumps({"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": f} for f in FILES]}))
        elif "/gated/resolve/" in path:
            self._answer(403, error="GatedRepo")
        else:
            self._answer(200, FILES[path.partition(f"{COMMIT}/")[2]])

    def _answer(self, status: int, body: str | bytes = b"", error: str = "") -> None:
        content = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content)}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


FIND = """
import json, sys
from common.catalog import Model
from common.errors import ModelRefused
from worker import checkpoint

for source, revision in json.loads(sys.argv[1]):
    model = Model("it", source, *[""] * 4, 64, 64, 1, "lms", 7.5, folder=None, revision=revision, safety_checker=False)
    try:
        folder, found = checkpoint.find(model)
        answer = [found, sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())]
    except ModelRefused as error:
        answer = error.message
    print(json.dumps(answer))
assert "torch" not in sys.modules
"""


def find(address: str, home: Path, *models: tuple[str, str | None]) -> list[Any]:
    """In a process of its own, for the client reads its environment once. Offline says: no address."""
    told = subprocess.run(
        [sys.executable, "-c", FIND, json.dumps(models)],
        env={**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_TOKEN": "", "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    return [json.loads(line) for line in told.stdout.splitlines()]


def test_a_model_is_fetched_and_serves_while_the_hub_is_away(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{hub.server_port}"
    left_out = {"unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "whole-model.ckpt"}
    fetched = [COMMIT, sorted(set(FILES) - left_out)]
    assert find(address, tmp_path, ("somebody/tiny", None)) == [fetched]

    nowhere = "http://127.0.0.1:1"
    again, pinned, other = find(
        nowhere, tmp_path, ("somebody/tiny", None), ("somebody/tiny", COMMIT), ("somebody/other", None)
    )
    assert again == pinned == fetched
    assert other.startswith("The model it is refused: the hub cannot be reached")
    assert "local folder" in other


def test_what_the_hub_refuses_is_said_with_what_to_do(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    gated, gone, revision, nonsense = find(
        f"http://127.0.0.1:{hub.server_port}",
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


def test_of_the_card_s_model_only_what_is_needed_is_fetched() -> None:
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
    assert sorted(wanted(files, parts)) == files[2:-1]
