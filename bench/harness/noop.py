"""`python -m bench.harness.noop --port N`:

the product's API with one more route, which does nothing with what it is given.
"""

import argparse
import sys

import uvicorn
from fastapi import Response

from api.app import create_app
from api.deps import JobsWriter
from api.schemas import JobRequest
from common.config import Settings


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.harness.noop")
    parser.add_argument("--port", type=int, required=True)
    app = create_app(Settings())

    @app.post("/v1/noop", status_code=201)
    async def noop(submission: JobRequest, caller: JobsWriter) -> Response:
        return Response(submission.model_dump_json(), 201, None, "application/json")

    port = parser.parse_args(arguments).port
    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="error")


if __name__ == "__main__":
    main(sys.argv[1:])
