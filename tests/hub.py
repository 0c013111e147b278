"""A stand-in for the hub on 127.0.0.1: what huggingface_hub asks of it, kept in memory, with mistakes on demand."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

USER, TOKEN = "ada", "hf_secretsecretsecretsecretsecret"


@dataclass
class Hub:
    """Repositories, and what went wrong or is to go wrong."""

    url: str = ""
    role: str = "write"
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)  # of LFS, by their SHA-256
    asked: list[str] = field(default_factory=list)  # method and path of every request
    fails: dict[str, tuple[int, str]] = field(default_factory=dict)  # path's part: status, message
    portal: bool = False  # whether something else answers


class Answers(BaseHTTPRequestHandler):
    """The endpoints."""

    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: object, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(f"{self.command} {path}")
        if hub.portal:
            self.answer(b"<html>Welcome to our hotel</html>")
            return
        for part, (status, message) in hub.fails.items():
            if part in path:
                self.answer({"error": message}, status, X_Error_Message=message)
                return
        if path.startswith("/blobs/"):  # storage: no token is sent there
            assert "Authorization" not in self.headers
            self.put_blob(path.rpartition("/")[2], body)
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
            return
        self.api(path, body)

    do_GET = do_POST = do_PUT = handle_any

    def put_blob(self, name: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != name:
            self.answer({"error": "other bytes"}, 400)
            return
        self.hub.blobs[name] = body
        self.answer({})

    def api(self, path: str, body: bytes) -> None:
        hub = self.hub
        if path == "/api/whoami-v2":
            self.answer({"name": USER, "auth": {"accessToken": {"role": hub.role}}})
        elif path == "/api/validate-yaml":
            wrong = "library_name" not in json.loads(body)["content"]
            self.answer({"errors": [{"message": "no library"}] * wrong, "warnings": []}, 400 if wrong else 200)  # fmt: skip
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self.answer({"files": [self.mode(file["path"]) for file in files]})
        elif path.endswith("/info/lfs/objects/batch"):
            self.answer({"objects": [self.upload(item) for item in json.loads(body)["objects"]]})
        elif path.startswith("/verify/"):
            told = json.loads(body)
            self.answer({}, 200 if len(hub.blobs[told["oid"]]) == told["size"] else 400)
        elif path.endswith("/commit/main"):
            self.commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        elif path.startswith("/api/models/"):
            repo = path.removeprefix("/api/models/")
            if repo in hub.repos:
                self.answer({"id": repo, "private": hub.private[repo], "sha": "0" * 40})
            else:
                self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        else:
            self.answer({"error": f"what is {path}?"}, 404)

    def create(self, told: dict[str, Any]) -> None:
        owner = told.get("organization") or USER
        repo = f"{owner}/{told['name']}"
        if owner != USER:
            self.answer({"error": "no rights to this namespace"}, 403)
        elif repo in self.hub.repos:
            self.answer({"error": "it is there", "url": f"{self.hub.url}/{repo}"}, 409)
        else:
            self.hub.repos[repo] = {}
            self.hub.private[repo] = told.get("visibility") == "private" or bool(
                told.get("private")
            )
            self.answer({"url": f"{self.hub.url}/{repo}"})

    def mode(self, path: str) -> dict[str, Any]:
        large = path.endswith((".safetensors", ".onnx", ".pte", ".model"))
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def upload(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.hub.blobs:
            return item
        actions = {
            "upload": {"href": f"{self.hub.url}/blobs/{item['oid']}", "header": {}},
            "verify": {"href": f"{self.hub.url}/verify/{item['oid']}", "header": {}},
        }
        return item | {"actions": actions}

    def commit(self, repo: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        self.hub.commits.append(lines[0]["value"])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                content = self.hub.blobs[value["oid"]]
                assert len(content) == value["size"]
            else:
                assert line["key"] == "file"
                content = base64.b64decode(value["content"])
            self.hub.repos[repo][value["path"]] = content
        self.answer({"commitUrl": f"{self.hub.url}/{repo}/commit/1", "commitOid": "1" * 40})


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Answers,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
