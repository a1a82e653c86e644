"""The way to each host: by the proxy of this machine's settings, or directly. Knows no farm.

httpx reads all settings of proxies when a client is made, and fails at any that it cannot use. Here only a request to a
host whose proxy cannot be used fails.
"""

import socket
import urllib.request

import httpx

from cli import sentence
from cli.errors import USAGE, Failure
from common.config import proxy_variable


class ProxyTransport(httpx.BaseTransport):
    """Sends each request by the proxy of its host. Raises Failure where that proxy cannot be used."""

    def __init__(self) -> None:
        self._certificates = httpx.create_ssl_context()
        self._transports: dict[str, httpx.HTTPTransport] = {}  # by the scheme and host of a URL

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        origin = f"{request.url.scheme}://{request.url.netloc.decode()}"
        if origin not in self._transports:
            self._transports[origin] = self._transport_to(request.url)
        return self._transports[origin].handle_request(request)

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()

    def _transport_to(self, url: httpx.URL) -> httpx.HTTPTransport:
        proxies = urllib.request.getproxies()
        name = url.scheme if url.scheme in proxies else "all"
        if name not in proxies or is_here(url.host) or urllib.request.proxy_bypass(url.netloc.decode()):
            return httpx.HTTPTransport(verify=self._certificates)
        proxy = proxies[name] if "://" in proxies[name] else f"http://{proxies[name]}"
        try:
            return httpx.HTTPTransport(verify=self._certificates, proxy=proxy)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            reason = sentence("socks_unsupported") if isinstance(error, ImportError) else error
            raise Failure(
                sentence("proxy_unusable", variable=proxy_variable(name), reason=reason, host=url.host), USAGE
            ) from None


def is_here(host: str) -> bool:
    """Whether the host is this machine: `localhost`, or an address that a socket can be bound to."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
        with socket.socket(family) as probe:
            probe.bind((host, 0))
    except (OSError, ValueError):
        return False
    return True
