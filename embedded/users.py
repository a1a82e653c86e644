"""As which user Postgres runs: it refuses root, and a user without a name. Knows no farm."""

import os
import pwd
import subprocess
from pathlib import Path

from common.errors import Unavailable
from embedded import sentence

NOBODY = 65534


def unprivileged() -> list[str]:
    """The prefix of a Postgres command where Postgres refuses this user: root, and one without a name."""
    user = os.geteuid()
    if user != 0 and has_name(user):
        return []
    namespace = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
    if runs(namespace):
        return namespace
    if user != 0:
        raise Unavailable(sentence("postgres_without_name", user=user))
    return as_nobody()


def has_name(user: int) -> bool:
    try:
        return bool(pwd.getpwuid(user))
    except KeyError:
        return False


def as_nobody() -> list[str]:
    """The prefix where user namespaces are disabled (some containers): `nobody`, with root's access to folders."""
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--pdeathsig=INT"]
    command += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    if not runs(command):
        raise Unavailable(sentence("postgres_as_root"))
    return command


def set_owner(data: Path, prefix: list[str]) -> None:
    owner = NOBODY if prefix[:1] == ["setpriv"] else os.geteuid()
    if data.stat().st_uid != owner or owner == NOBODY:
        for path in [data, *data.rglob("*")]:
            os.chown(path, owner, -1, follow_symlinks=False)


def runs(prefix: list[str]) -> bool:
    try:
        return subprocess.run([*prefix, "true"], capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False
