"""A server on loopback that answers like the Hugging Face hub, for tests. Nothing leaves the machine.

It knows the few addresses that a download uses: a model's description and file list under /api/models, and its files
under /<id>/resolve/<revision>/<file>. A model is a folder; gated models answer 401 without a token and 403 with one
that has no access, as the hub does; a silent server takes connections and never answers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
INVITED_TOKEN = "hf_invited"
UNINVITED_TOKEN = "hf_uninvited"
OVERLOADED = "busy/model"  # answered with 503


@contextmanager
def serve_hub(models: dict[str, Path], *, gated: tuple[str, ...] = (), silent: bool = False) -> Iterator[str]:
    """Serve `models` (id -> folder) and yield the address for HF_ENDPOINT. A silent server never answers."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Keep test output clean."""

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            if silent:
                closing.wait()
                self.close_connection = True
                return
            path = self.path.partition("?")[0].strip("/")
            is_api = path.startswith("api/models/")
            path = path.removeprefix("api/models/")
            model_id = next((known for known in models if f"{path}/".startswith(f"{known}/")), None)
            if not path:
                self._send(200)
            elif f"{path}/".startswith(f"{OVERLOADED}/"):
                self._refuse(503, None)
            elif model_id is None:
                self._refuse(404 if self._token() else 401, "RepoNotFound")  # the hub doesn't tell strangers
            elif self._token() not in (None, INVITED_TOKEN, UNINVITED_TOKEN):
                self._refuse(401, None, "Invalid credentials in Authorization header")
            elif model_id in gated and not is_api and self._token() != INVITED_TOKEN:
                self._refuse(403 if self._token() else 401, "GatedRepo")
            else:
                rest = path.removeprefix(model_id).strip("/")
                self._send_description(model_id, rest) if is_api else self._send_file(models[model_id], rest)

        def _token(self) -> str | None:
            return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

        def _send_description(self, model_id: str, rest: str) -> None:
            files = sorted(path for path in models[model_id].iterdir() if path.is_file())
            if rest.startswith("tree/"):
                answer = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": self._etag(f)} for f in files
                ]
            else:
                answer = {"id": model_id, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def _send_file(self, folder: Path, rest: str) -> None:
            file = folder / rest.rpartition("/")[2]  # resolve/<revision>/<file>
            if file.is_file():
                headers = {"ETag": f'"{self._etag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                self._send(200, file, headers)
            else:
                self._refuse(404, "EntryNotFound")

        def _etag(self, file: Path) -> str:
            state = file.stat()  # of gigabytes, too, and asked for often: not of the content
            return hashlib.sha1(f"{file} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()

        def _refuse(self, status: int, code: str | None, message: str = "refused") -> None:
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self._send(status, json.dumps({"error": message}).encode(), headers)

        def _send(self, status: int, body: bytes | Path = b"", headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(body.stat().st_size if isinstance(body, Path) else len(body)))
            self.end_headers()
            if self.command == "GET" and isinstance(body, Path):
                with body.open("rb") as file:
                    shutil.copyfileobj(file, self.wfile, 2**20)
            elif self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
