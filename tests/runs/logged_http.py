"""A tracking server of MLflow's REST interface, as far as a logger uses it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit


class TrackingServer(ThreadingHTTPServer):
    """Keeps what it is told; artifacts are copied to a folder by the client.

    Attributes:
        metrics: Name, step and value of each metric, in the order they came in.
        params: Name and value of each parameter.
        statuses: What the run was said to be, the last at the end.
        authorizations: The header of each request.
    """

    def __init__(self, artifacts: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.artifacts = artifacts
        self.metrics: list[tuple[str, int, float]] = []
        self.params: dict[str, str] = {}
        self.statuses: list[str] = []
        self.authorizations: set[str | None] = set()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def run(self) -> dict[str, Any]:
        return {
            "info": {
                "run_id": "run1", "run_uuid": "run1", "experiment_id": "7", "start_time": 0,
                "status": "RUNNING", "artifact_uri": self.artifacts.as_uri(),
                "lifecycle_stage": "active",
            },
            "data": {},
        }  # fmt: skip

    def answer(self, path: str, told: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer a request as MLflow's documentation of the interface says."""
        if path == "experiments/get-by-name":
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "there is none"}
        if path == "experiments/create":
            return 200, {"experiment_id": "7"}
        if path == "runs/log-batch":
            each = told.get("metrics", [])
            self.metrics += [(m["key"], int(m.get("step", 0)), float(m["value"])) for m in each]
            self.params |= {p["key"]: p["value"] for p in told.get("params", [])}
            return 200, {}
        if path == "runs/update":
            self.statuses.append(told["status"])
            return 200, {"run_info": self.run["info"]}
        if path in {"runs/create", "runs/get"}:
            return 200, {"run": self.run}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}


class Handler(BaseHTTPRequestHandler):
    server: TrackingServer

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        told = json.loads(self.rfile.read(length) or b"{}")
        self.server.authorizations.add(self.headers.get("Authorization"))
        path = urlsplit(self.path).path.partition("/mlflow/")[2]
        code, content = self.server.answer(path, told)
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Say nothing."""


@contextmanager
def tracking_server(artifacts: Path) -> Iterator[TrackingServer]:
    with TrackingServer(artifacts) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
