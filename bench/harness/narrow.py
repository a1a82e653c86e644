"""`python -m bench.harness.narrow --port N`: the product's API with small send buffers.

On loopback the kernel would buffer megabytes for each reader that does not read, and no stream would stall.
"""

import argparse
import os
import socket
import sys

from api.__main__ import Server, make_server
from api.app import create_app
from common.config import Settings

SEND_BUFFER = 8192


class Narrow(Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        with socket.socket(fileno=os.dup(self.servers[0].sockets[0].fileno())) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # accepted sockets inherit it


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.harness.narrow")
    parser.add_argument("--port", type=int, required=True)
    settings = Settings()
    server = make_server(create_app(settings), settings, "127.0.0.1", parser.parse_args(arguments).port)
    Narrow(server.config).run()


if __name__ == "__main__":
    main(sys.argv[1:])
