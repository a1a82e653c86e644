"""What schemathesis has to be told: a file is sent as it is."""

from typing import Any

import schemathesis
from schemathesis.transport.serialization import serialize_binary


@schemathesis.serializer("application/jsonl", "application/x-ndjson", "application/vnd.apache.parquet")
def send_file(context: Any, value: Any) -> bytes:
    return serialize_binary(value)
