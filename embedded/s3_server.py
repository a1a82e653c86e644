"""OpenStack Swift with its S3 API in one process: `python -m embedded.s3_server FOLDER`, with its data in FOLDER.

FOLDER/server.json holds the address, the port, the account and its secret. Path style, region us-east-1, Signature V4.
Swift's four servers run as green threads. Its three backends listen on ports of their own without authentication, so
each request to them must carry a token that only this process has. A full disk stores nothing more (507), and still
deletes.
"""

import json
import logging
import os
import secrets
import shutil
import sys
from hmac import compare_digest
from pathlib import Path
from time import monotonic
from typing import Any

from common.disks import RESERVE_BYTES
from common.log import LineFormatter

BACKENDS = ("account", "container", "object")
FILTERS = ["catch_errors", "gatekeeper", "listing_formats", "bulk", "s3api", "tempauth", "slo", "dlo"]
FILTERS += ["versioned_writes", "symlink"]
# FOLDER is the working folder and paths are relative to it, so that no character of its path needs quoting.
WORKING_FOLDER = "/proc/self/cwd/"
# One process on a shared machine can be slow: long timeouts, and the only disk is never treated as failed.
# Swift's own check is the second one: what `with_room` accepts is stored, and noted in the listing of its bucket.
COMMON = f"""[DEFAULT]
swift_dir = .
devices = node
mount_check = false
workers = 0
log_level = WARNING
log_address = /nonexistent
log_custom_handlers = embedded.s3_server.log_to_stderr
fallocate_reserve = {RESERVE_BYTES // 2}
"""
TIMEOUTS = "conn_timeout = 10\nnode_timeout = 60\n"
NO_ROOM = b"<Error><Code>InsufficientStorage</Code><Message>The disk is full.</Message></Error>"
TOKEN_HEADER = "X-Farm-Token"


def main(folder: str) -> None:
    import eventlet

    eventlet.monkey_patch()
    from eventlet import wsgi

    os.chdir(folder)
    os.umask(0o077)
    access = json.loads(Path("server.json").read_text())
    Path("node/disk").mkdir(parents=True, exist_ok=True)
    keep_hash_suffix()
    load_swift()
    from swift.common.wsgi import SwiftHttpProtocol, loadapp

    token = secrets.token_hex(16)
    add_token_to_requests(token)
    options: dict[str, Any] = {"protocol": SwiftHttpProtocol, "max_size": 1024, "log_output": False}
    for name in BACKENDS:
        listener = eventlet.listen(("127.0.0.1", 0))
        write_ring(name, listener.getsockname()[1])
        Path(f"{name}.conf").write_text(backend_configuration(name))
        eventlet.spawn(wsgi.server, listener, require_token(token, loadapp(WORKING_FOLDER + f"{name}.conf")), **options)
    Path("proxy.conf").write_text(proxy_configuration(access["account"], access["secret"]))
    frontend = eventlet.listen((access["listen"], access["port"]))
    app = with_room(with_cache(loadapp(WORKING_FOLDER + "proxy.conf")))
    wsgi.server(frontend, app, capitalize_response_headers=False, **options)


def keep_hash_suffix() -> None:
    """Create the salt of all paths on the disk, once: data stored under another salt cannot be found."""
    path = Path("swift.conf")
    if not path.exists():
        salt = f"swift_hash_path_suffix = {secrets.token_hex(8)}\nswift_hash_path_prefix = {secrets.token_hex(8)}\n"
        policy = "[storage-policy:0]\nname = gold\ndefault = yes\n[swift-constraints]\nmax_header_size = 16384\n"
        draft = Path("swift.conf.new")
        draft.write_text(f"[swift-hash]\n{salt}{policy}")
        draft.replace(path)


def load_swift() -> None:
    from swift.common import constraints, storage_policy, utils

    utils.set_swift_dir(".")
    utils.validate_configuration()
    constraints.reload_constraints()
    storage_policy.reload_storage_policies()


def write_ring(name: str, port: int) -> None:
    from swift.common.ring import RingBuilder

    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    address = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "disk", "weight": 1.0, "meta": "", **address})
    builder.rebalance()
    builder.get_ring().save(f"{name}.ring.gz")


def backend_configuration(name: str) -> str:
    return (
        f"{COMMON}[pipeline:main]\npipeline = {name}-server\n"
        f"[app:{name}-server]\nuse = egg:swift#{name}\nrecon_cache_path = .\n{TIMEOUTS}container_update_timeout = 30\n"
    )


def proxy_configuration(account: str, secret: str) -> str:
    group, user = account.split(":")
    options = {
        "s3api": "location = us-east-1\ns3_acl = false\ndns_compliant_bucket_names = false\n"
        "allow_multipart_uploads = true\nmin_segment_size = 5242880\ncheck_bucket_owner = false\n",
        "tempauth": f"user_{group}_{user} = {secret} .admin\n",
        "versioned_writes": "allow_object_versioning = true\n",
    }
    filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n{options.get(name, '')}" for name in FILTERS)
    return (
        f"{COMMON}[pipeline:main]\npipeline = {' '.join(FILTERS)} proxy-server\n{filters}"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
        f"{TIMEOUTS}error_suppression_limit = 1000000\n"
    )


def add_token_to_requests(token: str) -> None:
    """Make Swift add the token to its requests to the backends."""
    from swift.common.bufferedhttp import BufferedHTTPConnection

    putrequest = BufferedHTTPConnection.putrequest

    def putrequest_with_token(self: Any, *arguments: Any, **named: Any) -> Any:
        putrequest(self, *arguments, **named)
        self.putheader(TOKEN_HEADER, token)

    BufferedHTTPConnection.putrequest = putrequest_with_token


def require_token(token: str, app: Any) -> Any:
    key = "HTTP_" + TOKEN_HEADER.upper().replace("-", "_")

    def guarded(environ: dict[str, Any], start_response: Any) -> Any:
        if compare_digest(environ.get(key, ""), token):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Length", "0")])
        return []

    return guarded


class MemoryCache:
    """In place of memcached: without a cache Swift asks the backends for the bucket twice in each request."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[str, float]] = {}

    def get(self, key: str, **_: Any) -> Any:
        value, until = self._entries.get(key, ("null", 0.0))
        return json.loads(value) if monotonic() < until else None

    def set(self, key: str, value: Any, time: float = 0, **_: Any) -> None:
        self._entries[key] = json.dumps(value), monotonic() + time

    def delete(self, key: str, **_: Any) -> None:
        self._entries.pop(key, None)


def with_cache(app: Any) -> Any:
    cache = MemoryCache()

    def cached(environ: dict[str, Any], start_response: Any) -> Any:
        return app({**environ, "swift.cache": cache}, start_response)

    return cached


def with_room(app: Any) -> Any:
    """Refuse to store what the disk has no room for. A deletion needs none, nor does the end of an upload in parts."""

    def checked(environ: dict[str, Any], start_response: Any) -> Any:
        stores = environ["REQUEST_METHOD"] == "PUT" or environ.get("QUERY_STRING") == "uploads"
        size = int(environ.get("CONTENT_LENGTH") or 0)
        if not stores or shutil.disk_usage(".").free - size >= RESERVE_BYTES:
            return app(environ, start_response)
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(NO_ROOM)))]
        start_response("507 Insufficient Storage", headers)
        return [NO_ROOM]

    return checked


def log_to_stderr(conf: Any, name: Any, to_console: Any, route: Any, fmt: str, logger: Any, adapted: Any) -> None:
    """Swift calls this for each of its loggers, which otherwise write to syslog only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logger.handlers = [handler]


if __name__ == "__main__":
    main(sys.argv[1])
