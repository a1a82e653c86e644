"""`./huafang` in a copy of the tree: what it installs, when it installs again, and its errors.

Nothing large is downloaded: the package index is on loopback, and its uv is a fake that logs its calls.
"""

import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import certifi
import pytest

HOME = Path(__file__).resolve().parents[3]

# The fake uv: makes a venv of links and an entry point that prints its arguments, and logs its calls to `calls`.
UV = """#!/bin/sh
here=$(cd "$(dirname "$0")/../.." && pwd)
case "$*" in
  --version) echo "uv VERSION (fake)" ;;
  *--dry-run*) [ -n "$UV_FIND_LINKS" ] ;;
  venv*)
    ln -sf "PYTHON" "$here/.venv/bin/python"
    touch "$here/.venv/pyvenv.cfg"
    ;;
  *)
    echo "$UV_DEFAULT_INDEX|$UV_FIND_LINKS|$SSL_CERT_FILE|$*" >>"$here/calls"
    [ ! -e "$here/trouble" ] || { cat "$here/trouble" >&2; exit 2; }
    printf '#!/bin/sh\\necho "arguments: $*"\\n' >"$here/.venv/bin/huafang"
    packages=$here/.venv/lib/pythonMINOR/site-packages
    mkdir -p "$packages"
    printf %s "$here" >"$packages/_editable_impl_huafang.pth"
    chmod +x "$here/.venv/bin/huafang"
    ;;
esac
"""

# The metadata of a wheel, for pip.
WHEEL = {
    "METADATA": "Metadata-Version: 2.1\nName: uv\nVersion: VERSION\n",
    "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n",
    "RECORD": "",
}

CERTIFICATES = certifi.where()

# Not the suite's own Python: its venv has no pip.
PYTHON = os.path.realpath(sys.executable)
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass
class Copy:
    """The bootstrap in its own folder, with an empty HOME and its own package index."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: str, script: str = "huafang", **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / script), *arguments],
            env={**self.environment, **changes},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index with one package in it, on loopback."""
    root = tmp_path / "index"
    (root / "uv").mkdir(parents=True)
    version = re.findall(r'^UV = "(.+)"$', (HOME / "deploy" / "install.py").read_text(), re.MULTILINE)[0]
    links = []
    for system in ("manylinux_2_17_x86_64.manylinux2014_x86_64", "manylinux_2_28_aarch64", "macosx_11_0_arm64"):
        wheel = root / "uv" / f"uv-{version}-py3-none-{system}.whl"
        with zipfile.ZipFile(wheel, "w") as files:
            for name, text in WHEEL.items():
                files.writestr(f"uv-{version}.dist-info/{name}", text.replace("VERSION", version))
            files.writestr(
                f"uv-{version}.data/scripts/uv",
                UV.replace("VERSION", version).replace("PYTHON", PYTHON).replace("MINOR", MINOR),
            )
        links.append(f'<a href="{wheel.name}#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}">{wheel.name}</a>')
    (root / "uv" / "index.html").write_text("<!DOCTYPE html>" + "\n".join(links))

    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(params=["a copy"])
def copy(tmp_path: Path, index: str, request: pytest.FixtureRequest) -> Copy:
    folder = tmp_path / request.param
    (folder / "deploy").mkdir(parents=True)
    for name in ("huafang", "pyproject.toml", "constraints.txt", "deploy/install.py"):
        shutil.copy(HOME / name, folder / name)
    (tmp_path / "bin").mkdir()
    # Its pip and its venv are broken, as on a Debian without python3-pip and python3-venv.
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("pip", "venv"):
        (bare / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "HUAFANG_PYTHON": PYTHON,
        "PYTHONPATH": str(bare),
        "PIP_INDEX_URL": index,
        "PIP_FIND_LINKS": "/wheels/a /wheels/b",
        "no_proxy": "127.0.0.1",
    }
    return Copy(folder, environment)


def test_the_first_start_installs_and_hands_over(copy: Copy, index: str) -> None:
    done = copy.start("jobs", "ls", "画 坊")
    assert (done.returncode, done.stdout) == (0, "arguments: jobs ls 画 坊\n")
    assert "about 500 MB (PyTorch for the CPU) to download" in done.stderr
    (call,) = copy.calls()
    assert call.startswith(f"{index}|/wheels/a,/wheels/b||pip install ")
    assert call.endswith("--constraints constraints.txt --editable .[worker,datasets,local]")


def test_the_next_start_installs_nothing(copy: Copy) -> None:
    copy.start()
    (copy.folder / "deploy" / "install.py").unlink()
    again = copy.start("status")
    assert (again.returncode, again.stdout, again.stderr) == (0, "arguments: status\n", "")


@pytest.mark.parametrize("copy", ["我的 画坊"], indirect=True)
def test_a_folder_with_hanzi_in_a_locale_without(copy: Copy) -> None:
    """Python imports from the folder that an editable install names in a file, and reads that file as it starts."""
    (copy.folder / "ours.py").write_text("print('imported')")
    for locale in ("C", "C.UTF-8"):
        done = copy.start(LC_ALL=locale)
        assert (done.returncode, done.stdout) == (0, "arguments: \n"), done.stderr
        command = [copy.folder / ".venv" / "bin" / "python", "-P", "-c", "import ours"]
        here = {"LC_ALL": locale, "PYTHONSAFEPATH": "1"}
        started = subprocess.run(command, env=here, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        assert (started.returncode, started.stdout) == (0, "imported\n"), started.stderr
    assert len(copy.calls()) == 1


def test_it_finds_its_folder_through_links(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one").symlink_to(f"../{copy.folder.name}/huafang")
    (tmp_path / "two").symlink_to(tmp_path / "links" / "one")
    assert copy.start("status", script="../two").stdout == "arguments: status\n"


def test_new_pins_and_the_test_command_install_again(copy: Copy) -> None:
    copy.start()
    with (copy.folder / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    copy.start("test")  # the copy has no suite, but its extras are installed
    copy.start()
    assert [call.rpartition(" ")[2] for call in copy.calls()] == [
        ".[worker,datasets,local]",
        ".[worker,datasets,local,dev]",
    ]


def test_another_python_is_another_install(copy: Copy, tmp_path: Path) -> None:
    other = tmp_path / "bin" / "other-python"
    other.symlink_to(PYTHON)
    copy.start()
    copy.start(HUAFANG_PYTHON=str(other))
    copy.start(HUAFANG_PYTHON="")  # the first choice stays
    assert len(copy.calls()) == 2


def test_an_interrupted_install_is_done_again(copy: Copy) -> None:
    (copy.folder / "trouble").write_text("something odd\n")
    failed = copy.start()
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].endswith(".venv.log says why.")
    assert "something odd" in (copy.folder / ".venv.log").read_text()
    (copy.folder / "trouble").unlink()
    assert copy.start().returncode == 0


def test_two_at_once_install_once(copy: Copy) -> None:
    threads = [threading.Thread(target=copy.start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copy.calls()) == 1


def test_without_wheels_of_its_own_uv_chooses_the_torch(copy: Copy) -> None:
    copy.start(PIP_FIND_LINKS="")
    (call,) = copy.calls()
    assert "--torch-backend=auto" in call


@pytest.mark.needs("pip")
def test_uv_gets_the_settings_of_pip(copy: Copy, index: str, tmp_path: Path) -> None:
    (tmp_path / "home" / ".config" / "pip").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "pip" / "pip.conf").write_text(
        f"[global]\nindex-url = {index}\nfind-links =\n  /wheels/one\n  /wheels/two\ncert = {CERTIFICATES}\n"
    )
    for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "PYTHONPATH"):
        del copy.environment[name]
    assert copy.start().returncode == 0
    assert copy.calls()[0].startswith(f"{index}|/wheels/one,/wheels/two|{CERTIFICATES}|")


def test_a_damaged_uv_is_refused(copy: Copy, tmp_path: Path) -> None:
    for wheel in (tmp_path / "index" / "uv").glob("*.whl"):
        wheel.write_bytes(wheel.read_bytes() + b"!")
    failed = copy.start()
    assert failed.returncode == 1
    assert failed.stderr == ("huafang: the package index sent a damaged uv: its sha256 is not the one announced.\n")


# --- one clear sentence each


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    *progress, last = done.stderr.splitlines()
    assert all(line.startswith("huafang: installing into") for line in progress), done.stderr
    return last


def test_a_python_too_old(copy: Copy, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "python3"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    for name in ("python3.11", "python3.12", "python3.13", "python3.14"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 127\n")
        (tmp_path / "bin" / name).chmod(0o755)
    assert one_sentence(copy.start(HUAFANG_PYTHON="")) == (
        "huafang: Python 3.11 or newer is needed, and python3 is Python 3.9: install one, or name it in HUAFANG_PYTHON."
    )


def test_a_chosen_python_that_is_not_there(copy: Copy) -> None:
    message = one_sentence(copy.start(HUAFANG_PYTHON="/nowhere/python3"))
    assert message.startswith("huafang: Python 3.11 or newer is needed, and /nowhere/python3 does not run: ")


def test_no_network(copy: Copy) -> None:
    message = one_sentence(copy.start(PIP_INDEX_URL="http://127.0.0.1:9"))
    assert message.startswith("huafang: the package index cannot be reached: check the network, then start again")


@pytest.mark.needs("pip")
def test_no_network_seen_by_pip(copy: Copy) -> None:
    del copy.environment["PYTHONPATH"]
    message = one_sentence(copy.start(PIP_INDEX_URL="http://127.0.0.1:9", PIP_RETRIES="0"))
    assert message.startswith("huafang: the package index cannot be reached: check the network, then start again")


def test_no_network_seen_by_uv(copy: Copy) -> None:
    (copy.folder / "trouble").write_text("error: Request failed after 3 retries\n  Caused by: dns error\n")
    assert "the package index cannot be reached" in one_sentence(copy.start())


def test_neither_pip_nor_venv_nor_index(copy: Copy) -> None:
    assert one_sentence(copy.start(PIP_INDEX_URL="")) == (
        "huafang: this Python has neither pip nor venv: install python3-venv, or name an index in PIP_INDEX_URL."
    )


@pytest.mark.needs("unshare")
def test_a_full_disk(copy: Copy, tmp_path: Path, index: str) -> None:
    """A real file system of 128 KB, in its own mount namespace."""
    small = tmp_path / "small"
    small.mkdir()
    script = """
        mount -t tmpfs -o size=128k none "$2" && cp -r "$1/." "$2" || exit 99
        head -c 1m /dev/zero >"$2/filler" 2>/dev/null
        exec "$2/huafang" status
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(copy.folder), str(small)],
        env=copy.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("huafang: the disk is full (0 MB free at "), done.stderr
