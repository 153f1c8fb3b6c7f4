"""Uploading, against a small server that stands for the hub: what is sent, and one sentence for what goes wrong."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

TO = "me/my-model"
CODE = """
import sys
from pathlib import Path
from sparring.errors import SparringError
from sparring.export.push import push
try:
    print(push(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "private"))
except SparringError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class Hub(ThreadingHTTPServer):
    """Answers what huggingface_hub asks when it makes a repository and commits to it; keeps what it was given."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.created: dict[str, Any] = {}
        self.exists_open = False
        self.refuses: tuple[str, int, str] | None = None  # a part of a path, a status, what is said

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _any(self) -> None:
        hub, body = self.server, self._body()
        hub.asked.append((self.command, self.path))
        if self.path.startswith("/store/"):
            hub.stored[self.path.removeprefix("/store/")] = body
            return self._reply({})
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuses and hub.refuses[0] in self.path:
            return self._reply({"error": hub.refuses[2]}, hub.refuses[1])
        return self._reply(*self._answer(body))

    def _answer(self, body: bytes) -> tuple[Any, int] | tuple[Any]:
        hub, path = self.server, self.path.split("?")[0]
        if path == "/api/repos/create":
            hub.created = json.loads(body)
            return {"url": f"{hub.address}/{TO}", "name": TO, "id": TO}, 409 if hub.exists_open else 200
        if path == "/api/validate-yaml":
            return ({"errors": [], "warnings": []},)
        if path.endswith("/preupload/main"):
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("safetensors") else "regular",
                 "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            return ({"files": modes},)
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.address}/store/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return ({"transfer": "basic", "objects": objects},)
        if path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    hub.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                elif row["key"] == "lfsFile":
                    hub.files[row["value"]["path"]] = hub.stored[row["value"]["oid"]]
            oid = "0" * 40
            return ({"success": True, "commitOid": oid, "commitUrl": f"{hub.address}/{TO}/commit/{oid}"},)
        if path.startswith("/api/models/"):
            return ({"id": TO, "private": not hub.exists_open, "sha": "0" * 40, "siblings": [], "tags": []},)
        return {"error": f"nothing at {path}"}, 404

    do_GET = do_POST = do_PUT = _any


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


def push(folder: Path, address: str, to: str = TO, private: bool = True, **changes: str) -> tuple[int, str]:
    """(exit status, what was said) in a process of its own: huggingface_hub reads its settings once."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env |= {"HF_ENDPOINT": address, "HF_HOME": str(folder.parent / "home"), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": "hf_secret"} | changes
    words = [sys.executable, "-c", CODE, str(folder), to, "private" if private else "public"]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120)
    return done.returncode, done.stdout.strip() or done.stderr.strip()


def test_a_folder_is_uploaded_as_it_is(hub: Hub, folder: Path) -> None:
    assert push(folder, hub.address) == (0, f"{hub.address}/{TO}")
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.created["name"] == "my-model"
    assert hub.created["organization"] == "me"
    assert hub.created["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_secret"}


def test_public_only_if_asked(hub: Hub, folder: Path) -> None:
    assert push(folder, hub.address, private=False)[0] == 0
    assert hub.created["visibility"] == "public"


def test_what_is_open_to_all_is_not_written_to_unasked(hub: Hub, folder: Path) -> None:
    hub.exists_open = True
    status, said = push(folder, hub.address)
    assert status == 1
    assert said.startswith(f"InputError: {TO} is there already and open to all")
    assert not hub.files
    assert push(folder, hub.address, private=False)[0] == 0
    assert hub.files


@pytest.mark.parametrize(
    ("part", "status", "kind", "words"),
    [
        ("/api/", 401, "RunError", "does not accept the token"),
        ("/api/", 403, "RunError", "the token may not write to me/my-model"),
        ("/api/repos/create", 404, "RunError", "cannot be found or made"),
        ("/api/validate-yaml", 400, "RunError", "the hub refuses what was sent"),
        ("/commit/", 403, "RunError", "the token may not write to me/my-model"),
        ("/commit/", 501, "RunError", "answered with an error, 501"),
    ],
)
def test_a_refusal_is_one_sentence(hub: Hub, folder: Path, part: str, status: int, kind: str, words: str) -> None:
    hub.refuses = (part, status, "because so")
    code, said = push(folder, hub.address)
    assert code == 1
    assert said.startswith(f"{kind}: ")
    assert words in said
    assert "\n" not in said
    assert not hub.files


def test_without_a_token_or_a_name_nothing_is_asked(hub: Hub, folder: Path) -> None:
    assert "there is no token" in push(folder, hub.address, HF_TOKEN="")[1]
    assert "is not owner/name" in push(folder, hub.address, to="my-model")[1]
    assert "is not a name on the hub" in push(folder, hub.address, to="me/my model")[1]
    assert "HF_HUB_OFFLINE is set" in push(folder, hub.address, HF_HUB_OFFLINE="1")[1]
    assert hub.asked == []


def test_no_network_is_one_sentence(folder: Path) -> None:
    code, said = push(folder, "http://127.0.0.1:9")
    assert code == 1
    assert said.startswith("RunError: the hub (http://127.0.0.1:9) cannot be reached (")
    assert "\n" not in said


def test_only_what_is_finished_is_uploaded(hub: Hub, folder: Path) -> None:
    (folder / "README.md").rename(folder / "a.md")
    assert "no model card" in push(folder, hub.address)[1]
    (folder / "a.md").rename(folder / "README.md")
    (folder / "run.lock.yaml").write_text("")
    assert "is a run, with its data in it" in push(folder, hub.address)[1]
    (folder / "run.lock.yaml").unlink()
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in push(folder, hub.address)[1]
    assert "is not a folder" in push(folder / "nowhere", hub.address)[1]
    assert hub.asked == []
