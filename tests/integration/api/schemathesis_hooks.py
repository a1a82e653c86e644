"""What schemathesis has to be told: a file is sent as it is."""

from typing import Any

import schemathesis
from schemathesis.transport.serialization import serialize_binary

from common.prompt_files.formats import MEDIA_TYPES, UNKNOWN_TYPES

KNOWN = ("application/json", "application/octet-stream", "text/plain")  # to schemathesis


@schemathesis.serializer(*(one for one in (*MEDIA_TYPES, *UNKNOWN_TYPES) if one not in KNOWN))
def send_file(context: Any, value: Any) -> bytes:
    return serialize_binary(value)
