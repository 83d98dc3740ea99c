"""A Hub id, against a local HTTP server that speaks the few endpoints a download needs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import mlplatform as mp

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZE = ["trunk.dim=32", "trunk.depth=1", "trunk.input.vocab=50", "trunk.layer.mlp.width=48"]
SIZE += ["trunk.layer.attention.heads=4", "trunk.layer.attention.kv_heads=2"]


class Hub(BaseHTTPRequestHandler):
    """One repository, `me/tiny`, at one commit; the branch `gated` wants a token."""

    folder: Path
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if "gated" in path and self.headers.get("Authorization") != "Bearer hf_right":
            return self.reply(401, b"{}", body)
        for revision in ("main", "gated", COMMIT):
            if path == f"/api/models/me/tiny/revision/{revision}":
                siblings = [{"rfilename": p.name} for p in sorted(self.folder.iterdir())]
                info = {"id": "me/tiny", "modelId": "me/tiny", "sha": COMMIT, "siblings": siblings}
                return self.reply(200, json.dumps(info).encode(), body)
            if path == f"/api/models/me/tiny/tree/{revision}":
                files = [(p.name, p.read_bytes()) for p in sorted(self.folder.iterdir())]
                tree = [
                    {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for n, d in files
                ]
                return self.reply(200, json.dumps(tree).encode(), body)
            prefix = f"/me/tiny/resolve/{revision}/"
            if path.startswith(prefix) and (self.folder / path.removeprefix(prefix)).is_file():
                return self.reply(200, (self.folder / path.removeprefix(prefix)).read_bytes(), body)
        return self.reply(404, b'{"error": "Repository not found"}', body, {"X-Error-Code": "RepoNotFound"})

    def reply(self, status: int, data: bytes, body: bool, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(data)), "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        for name, value in {**headers, "X-Repo-Commit": COMMIT, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    mp.save(mp.build("llama", SIZE), tmp_path / "repo")
    (tmp_path / "repo" / "modeling_evil.py").write_text("raise SystemExit")
    (tmp_path / "repo" / "pytorch_model.bin").write_bytes(b"pickle")
    Hub.folder, Hub.asked = tmp_path / "repo", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Hub.asked
    server.shutdown()
    server.server_close()


def load(endpoint: str, tmp_path: Path, arguments: str, offline: str = "0") -> tuple[int, str]:
    """Load in a process of its own: huggingface_hub reads its environment when it is imported."""
    code = f"""
import sys, mlplatform as mp
from mlplatform.errors import PlatformError
try:
    model = mp.load({arguments}, cache_dir={str(tmp_path / "cache")!r})
    print(sum(p.numel() for p in model.parameters()))
except PlatformError as error:
    print(error)
    sys.exit(2)
"""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    environment |= {
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    return done.returncode, done.stdout.strip() or done.stderr


def test_a_hub_id_is_fetched_once_and_kept(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    code, said = load(endpoint, tmp_path, "'me/tiny'")
    assert code == 0, said
    assert int(said) == sum(p.numel() for p in mp.build("llama", SIZE).parameters())
    assert not [path for path in asked if path.endswith((".py", ".bin"))], "code and pickles are not even fetched"
    assert load("http://127.0.0.1:9", tmp_path, "'me/tiny'", offline="1")[0] == 0, "the cache serves without a network"


@pytest.mark.parametrize(
    ("arguments", "offline", "message"),
    [
        ("'me/nothing'", "0", "404 for 'me/nothing'"),
        ("'me/tiny', revision='gated'", "0", "401 for 'me/tiny' at revision 'gated'"),
        ("'me/tiny'", "1", "nor in the Hub cache"),
        ("'not a name at all'", "0", "neither a folder here nor a Hub id"),
    ],
)
def test_what_goes_wrong_is_one_line(
    hub: tuple[str, list[str]], tmp_path: Path, arguments: str, offline: str, message: str
) -> None:
    code, said = load(hub[0], tmp_path, arguments, offline)
    assert code == 2, said
    assert message in said
    assert "\n" not in said


def test_revision_and_token(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    code, said = load(hub[0], tmp_path, "'me/tiny', revision='gated', token='hf_right'")
    assert code == 0, said
