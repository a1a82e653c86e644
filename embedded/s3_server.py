"""OpenStack Swift with its S3 API in one process: `python -m embedded.s3_server FOLDER`, the data under FOLDER.

FOLDER/server.json says where to listen and who may come in. Path style, region us-east-1, Signature V4. Swift's four
servers run here as green threads; the three at the back have ports of their own and believe whoever reaches them, so
they ask every caller for a token that only this process knows.
"""

import json
import logging
import os
import secrets
import sys
from hmac import compare_digest
from pathlib import Path
from time import monotonic
from typing import Any

BACKENDS = ("account", "container", "object")
FILTERS = ["catch_errors", "gatekeeper", "listing_formats", "bulk", "s3api", "tempauth", "slo", "dlo"]
FILTERS += ["versioned_writes", "symlink"]
# The process works in FOLDER and names files from there, so that no character of its path needs quoting.
HERE = "/proc/self/cwd/"
# One busy process on a shared machine: be patient, and never take the only disk for a broken one.
COMMON = """[DEFAULT]
swift_dir = .
devices = node
mount_check = false
workers = 0
log_level = WARNING
log_address = /nonexistent
log_custom_handlers = embedded.s3_server.log_to_stderr
"""
PATIENCE = "conn_timeout = 10\nnode_timeout = 60\n"
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
    send_with_requests(token)
    served: dict[str, Any] = {"protocol": SwiftHttpProtocol, "max_size": 1024, "log_output": False}
    for name in BACKENDS:
        listener = eventlet.listen(("127.0.0.1", 0))
        write_ring(name, listener.getsockname()[1])
        Path(f"{name}.conf").write_text(backend_configuration(name))
        eventlet.spawn(wsgi.server, listener, only_with(token, loadapp(HERE + f"{name}.conf")), **served)
    Path("proxy.conf").write_text(proxy_configuration(access["account"], access["secret"]))
    front = eventlet.listen((access["listen"], access["port"]))
    wsgi.server(front, remembering(loadapp(HERE + "proxy.conf")), capitalize_response_headers=False, **served)


def keep_hash_suffix() -> None:
    """The salt of every path on the disk: made once, for data stored under another one cannot be found again."""
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
        f"[app:{name}-server]\nuse = egg:swift#{name}\nrecon_cache_path = .\n{PATIENCE}container_update_timeout = 30\n"
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
        f"{PATIENCE}error_suppression_limit = 1000000\n"
    )


def send_with_requests(token: str) -> None:
    """Let Swift's own requests to its back carry the token."""
    from swift.common.bufferedhttp import BufferedHTTPConnection

    putrequest = BufferedHTTPConnection.putrequest

    def putrequest_with_token(self: Any, *arguments: Any, **named: Any) -> Any:
        putrequest(self, *arguments, **named)
        self.putheader(TOKEN_HEADER, token)

    BufferedHTTPConnection.putrequest = putrequest_with_token


def only_with(token: str, app: Any) -> Any:
    key = "HTTP_" + TOKEN_HEADER.upper().replace("-", "_")

    def guarded(environ: dict[str, Any], start_response: Any) -> Any:
        if compare_digest(environ.get(key, ""), token):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Length", "0")])
        return []

    return guarded


class Memory:
    """What stands in for memcached: without one, Swift asks its back twice in each request which buckets there are."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}

    def get(self, key: str, **_: Any) -> Any:
        value, until = self._known.get(key, ("null", 0.0))
        return json.loads(value) if monotonic() < until else None

    def set(self, key: str, value: Any, time: float = 0, **_: Any) -> None:
        self._known[key] = json.dumps(value), monotonic() + time

    def delete(self, key: str, **_: Any) -> None:
        self._known.pop(key, None)


def remembering(app: Any) -> Any:
    memory = Memory()

    def with_memory(environ: dict[str, Any], start_response: Any) -> Any:
        return app({**environ, "swift.cache": memory}, start_response)

    return with_memory


def log_to_stderr(conf: Any, name: Any, to_console: Any, route: Any, fmt: str, logger: Any, adapted: Any) -> None:
    """Swift calls this for each of its loggers, which otherwise speak to syslog only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.handlers = [handler]


if __name__ == "__main__":
    main(sys.argv[1])
