"""The installer of ./huafang: makes .venv and installs the package into it, with uv, under constraints.txt.

    lock -> get uv -> make .venv -> install -> stamp

The stamp is written last, so the next start repeats an interrupted install. Uses the standard library only, and neither
`venv` nor `ensurepip`: uv makes the venv. uv gets the package indexes and certificates of this machine's pip. Knows
nothing of the farm.
"""

import ast
import base64
import fcntl
import hashlib
import html
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import IO, Any

UV = "0.13.9"
EXTRAS = {"run": "worker,datasets,local", "dev": "worker,datasets,local,dev"}
HOME = Path(__file__).resolve().parent.parent
VENV = HOME / ".venv"
LOG = HOME / ".venv.log"
# Of the outputs of programs and of the log, in every locale.
UTF8: Any = {"encoding": "utf-8", "errors": "backslashreplace"}

# pip's setting: (uv's variable, the separator of its values)
PIP_TO_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}

NETWORK = re.compile(
    r"error sending request|dns error|failed to lookup|name resolution|Connection refused|Connection reset|timed out"
    r"|Network is unreachable|NewConnectionError|Tunnel connection failed|urlopen error|Failed to fetch",
    re.IGNORECASE,
)
DISK_FULL = re.compile(
    r"No space left|Disk quota exceeded|File too large|\bos error (27|28|122)\b|Errno (27|28|122)\b", re.IGNORECASE
)


class Stop(Exception):
    """Ends the installation; the text is the sentence for the user."""


def main(need: str, wanted: str) -> None:
    with open(HOME / ".venv.lock", "w") as lock:
        acquire(lock)
        if is_installed(need, wanted):
            return
        delete_stamps()
        LOG.write_text("")
        with tempfile.TemporaryDirectory() as folder:
            pip = find_pip(Path(folder))
            configure_uv(pip)
            if not is_usable():
                shutil.rmtree(VENV, ignore_errors=True)
            uv = VENV / "bin" / "uv"
            if not runs([str(uv), "--version"], prints=f"uv {UV}"):
                get_uv(pip, Path(folder), uv)
        if not is_usable():
            call([str(uv), "venv", "--allow-existing", "--no-project", "--python", sys.executable, str(VENV)])
        install(uv, EXTRAS[need])
        write_stamps(need, wanted)


def acquire(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another start is installing here; waiting until it has ended.")
        fcntl.flock(lock, fcntl.LOCK_EX)


# --- stamps


def stamps(need: str) -> list[Path]:
    return [VENV / f"installed-{name}" for name in (["run", "dev"] if need == "dev" else ["run"])]


def is_installed(need: str, wanted: str) -> bool:
    chosen = os.environ.get("HUAFANG_PYTHON")
    by = VENV / "installed-by"
    return (
        is_usable()
        and all(stamp.is_file() and stamp.read_bytes() == os.fsencode(wanted) for stamp in stamps(need))
        and (not chosen or by.read_bytes() == os.fsencode(chosen))
    )


def delete_stamps() -> None:
    for stamp in stamps("dev"):
        stamp.unlink(missing_ok=True)


def write_stamps(need: str, wanted: str) -> None:
    (VENV / "installed-by").write_bytes(os.fsencode(os.environ.get("HUAFANG_PYTHON", "")))
    for stamp in stamps(need):
        stamp.write_bytes(os.fsencode(wanted))


def is_usable() -> bool:
    """Whether the venv's Python runs and has this Python's version."""
    version = platform.python_version()
    return (VENV / "pyvenv.cfg").is_file() and runs(
        [str(VENV / "bin" / "python"), "--version"], prints=f"Python {version}"
    )


# --- pip's settings, and uv


def find_pip(folder: Path) -> list[str] | None:
    """This Python's pip, or the one of a temporary venv; a Debian without python3-venv may have neither."""
    if runs([sys.executable, "-m", "pip", "--version"]):
        return [sys.executable, "-m", "pip"]
    made = subprocess.run([sys.executable, "-m", "venv", str(folder / "pip")], capture_output=True)
    return [str(folder / "pip" / "bin" / "python"), "-m", "pip"] if made.returncode == 0 else None


def configure_uv(pip: list[str] | None) -> None:
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, **UTF8).stdout if pip else ""
    found = dict(re.findall(r"^(?:global|install)\.([\w-]+)=(.+)$", listed, re.MULTILINE))
    for name, (variable, between) in PIP_TO_UV.items():
        value = os.environ.get("PIP_" + name.upper().replace("-", "_")) or ast.literal_eval(found.get(name, "''"))
        if value and variable not in os.environ:
            os.environ[variable] = between.join(value.split())
    # As pip does: the best version of all indexes. By default uv uses only the first index with the name.
    os.environ.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    if not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ.setdefault("UV_NO_CACHE", "1")


def get_uv(pip: list[str] | None, folder: Path, uv: Path) -> None:
    if pip:
        os.environ["PIP_REQUIRE_VIRTUALENV"] = "0"  # it only downloads
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--retries=1"]
        call([*pip, "download", *options, f"--dest={folder}", f"uv=={UV}"])
        wheel = next(folder.glob("uv-*.whl"))
    elif index := os.environ.get("UV_DEFAULT_INDEX"):
        wheel = fetch_wheel(index, folder)
    else:
        raise Stop("this Python has neither pip nor venv: install python3-venv, or name an index in PIP_INDEX_URL.")
    with zipfile.ZipFile(wheel) as files:
        uv.parent.mkdir(parents=True, exist_ok=True)
        uv.write_bytes(files.read(f"uv-{UV}.data/scripts/uv"))
    uv.chmod(0o755)


def fetch_wheel(index: str, folder: Path) -> Path:
    """Download uv's wheel for this machine, by the Simple Repository API (JSON or HTML)."""
    page, kind, text = read(f"{index.rstrip('/')}/uv/")
    if "json" in kind:
        files = [(file["url"], file["hashes"].get("sha256", "")) for file in json.loads(text)["files"]]
    else:
        hrefs = map(html.unescape, re.findall(r'href="([^"]+)"', text.decode()))
        files = [
            (url, fragment.removeprefix("sha256=")) for url, _, fragment in (href.partition("#") for href in hrefs)
        ]
    system = "macosx" if sys.platform == "darwin" else "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    name = re.compile(rf"uv-{re.escape(UV)}-py3-none-{system}_\w+_{platform.machine()}(\.\w+)?\.whl$")
    for url, sha256 in files:
        if name.search(url):
            content = read(urllib.parse.urljoin(page, url))[2]
            if hashlib.sha256(content).hexdigest() != sha256:
                raise Stop("the package index sent a damaged uv: its sha256 is not the one announced.")
            wheel = folder / "uv.whl"
            wheel.write_bytes(content)
            return wheel
    raise Stop(f"the package index has no uv {UV} for this machine ({platform.system()} {platform.machine()}).")


def read(url: str) -> tuple[str, str, bytes]:
    """The final URL, the content type and the body."""
    parts = urllib.parse.urlsplit(url)
    request = urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    request.add_header("Accept", "application/vnd.pypi.simple.v1+json, text/html;q=0.5")
    if parts.username:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=60, context=ssl.create_default_context()) as answer:
        return answer.url, answer.headers.get("Content-Type", ""), answer.read()


# --- installing


def install(uv: Path, extras: str) -> None:
    command = [str(uv), "pip", "install", "--python", str(VENV / "bin" / "python"), "--constraints", "constraints.txt"]
    target = ["--editable", f".[{extras}]"]
    gpu = bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia/version").exists()
    new = not any(VENV.glob("lib/python*/site-packages/torch"))
    cpu_wheel_here = not gpu and runs([*command, "--dry-run", "--no-deps", "--no-index", "torch"])
    backend = [] if cpu_wheel_here else ["--torch-backend=auto"]
    if new:
        size = "3 GB (PyTorch with CUDA)" if gpu else "500 MB (PyTorch for the CPU)"
        say(f"installing into {VENV}, once: about {size} to download.")
    try:
        call([*command, *backend, *target])
    except Stop:
        # Only PyTorch's index is unreachable; the package index has the build with CUDA.
        if not backend or "download.pytorch.org" not in LOG.read_text(**UTF8):
            raise
        say("PyTorch's index cannot be reached: installing the build of the package index instead, about 3 GB.")
        call([*command, *target])
    if not str(HOME).isascii():
        write_path_in_ascii()


def write_path_in_ascii() -> None:
    """Python reads the file with this folder's path in the locale's encoding, and does not start where that fails."""
    for file in VENV.glob("lib/python*/site-packages/*huafang*.pth"):
        file.write_text("import os, sys; sys.path.append(os.path.dirname(sys.prefix))\n")


def runs(command: list[str], prints: str = "") -> bool:
    """Whether the command succeeds, with an output that starts so."""
    try:
        done = subprocess.run(command, cwd=HOME, capture_output=True, **UTF8)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.startswith(prints)


def call(command: list[str]) -> None:
    """Run a command with its output in the log; lines of uv's progress go to stderr too. Raises Stop where it fails."""
    with (
        LOG.open("a", **UTF8) as log,
        subprocess.Popen(
            command, cwd=HOME, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **UTF8
        ) as child,
    ):
        log.write(f"$ {' '.join(command)}\n")
        start = log.tell()
        assert child.stdout
        for line in child.stdout:
            log.write(line)
            if re.match(r"(Resolved|Prepared|Installed|Downloading|Building) ", line):
                print("  " + line.rstrip(), file=sys.stderr, flush=True)
    if child.returncode:
        raise Stop(explain(LOG.read_text(**UTF8)[start:]))


def explain(output: str) -> str:
    """The sentence for a failed command with this output."""
    if DISK_FULL.search(output):
        return (
            f"the disk is full ({shutil.disk_usage(HOME).free >> 20} MB free at {HOME}): make room, then start again."
        )
    if NETWORK.search(output):
        return f"the package index cannot be reached: check the network, then start again ({LOG} has the details)."
    return f"installing failed: {LOG} says why."


def say(text: str) -> None:
    print(f"huafang: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Stop as stop:
        say(str(stop))
        sys.exit(1)
    except OSError as error:
        known = DISK_FULL.search(str(error)) or NETWORK.search(str(error))
        say(explain(str(error)) if known else f"{error.strerror or error}: {error.filename}.")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
