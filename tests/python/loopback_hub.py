#!/usr/bin/env python3
"""A Hugging Face hub on loopback that serves folders: ROOT/models/ORG/NAME/... and ROOT/datasets/ORG/NAME/...

    loopback_hub.py --root DIR --port 0        prints "http://127.0.0.1:PORT", serves until it is killed
    with LoopbackHub(root) as hub: ... hub.endpoint ...

Large and binary files have a sha256 as etag and come by an absolute redirect from a second host and port (the "CDN"), which must never
see a token; others have git's sha1 and come from the hub itself. Faults are asked for in Python: hub.fail("model.bin", ...).
"""
import argparse
import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

LFS_SUFFIXES = {".safetensors", ".bin", ".jit", ".pt", ".parquet", ".model", ".h5"}
CHUNK = 65536


class Fault:
    """What goes wrong with the next `times` requests of a kind ("HEAD", "GET" or "API") for a file."""

    def __init__(self, on, times, status=None, headers=None, truncate=None, wrong=False, no_range=False, chunk_seconds=0,
                 hang_seconds=0):
        self.on, self.times, self.status, self.headers = on, times, status, headers or {}
        self.truncate, self.wrong, self.no_range = truncate, wrong, no_range
        self.chunk_seconds, self.hang_seconds = chunk_seconds, hang_seconds


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that gave up is no error
            super().handle_error(request, client_address)


class LoopbackHub:
    def __init__(self, root, port=0):
        self.root = Path(root)
        self.log = []  # of (server, method, path, range, has_token)
        self.faults = {}  # file name -> list of Fault
        self.private = {}  # repository -> the token that may read it
        self.gated = {}  # repository -> the token whose account has access
        self.renamed = {}  # old id -> new id
        self.headers = {}  # file name -> headers in place of the true ones
        self.violations = []  # what a client must not do
        self.lock = threading.Lock()
        self.hashes = {}
        self.hub = self.start(HubHandler, "127.0.0.1", port)
        self.cdn = self.start(CdnHandler, "127.0.0.2", 0)  # another host: 1.x sends its token to every port of the hub's
        self.endpoint = f"http://127.0.0.1:{self.hub.server_port}"

    def start(self, handler, host, port):
        server = Server((host, port), type(handler.__name__, (handler,), {"state": self}))
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in (self.hub, self.cdn):
            server.shutdown()
            server.server_close()

    def fail(self, name, on="GET", times=1, **what):
        self.faults.setdefault(name, []).append(Fault(on, times, **what))

    def fault(self, name, on):
        with self.lock:
            for fault in self.faults.get(name, []):
                if fault.on == on and fault.times > 0:
                    fault.times -= 1
                    return fault
        return Fault(on, 0)

    def requests(self, method=None, server=None, name=""):
        with self.lock:
            return [entry for entry in self.log
                    if method in (None, entry[1]) and server in (None, entry[0]) and entry[2].endswith(name)]

    def files(self, kind, repo):
        folder = self.root / kind / repo
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def file_hashes(self, path):
        """(git sha1, sha256) of a file, remembered."""
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in self.hashes:
            data = path.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self.hashes[key] = git, hashlib.sha256(data).hexdigest()
        return self.hashes[key]

    def commit(self, kind, repo):
        text = "".join(f"{name} {self.file_hashes(self.root / kind / repo / name)[0]}\n" for name in self.files(kind, repo))
        return hashlib.sha1(text.encode()).hexdigest()

    def is_lfs(self, path):
        return path.suffix in LFS_SUFFIXES or path.stat().st_size > 1 << 20


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_name = "hub"

    def log_message(self, *_):
        pass

    def note(self):
        with self.state.lock:
            self.state.log.append((self.server_name, self.command, urlsplit(self.path).path, self.headers.get("Range"),
                                   "Authorization" in self.headers))

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status, code=None, message=None, headers=()):
        extra = dict(headers)
        if code:
            extra["X-Error-Code"] = code
        if message:
            extra["X-Error-Message"] = message
        self.answer(status, extra)

    def send_file(self, path, fault, headers=()):
        if fault.hang_seconds:
            time.sleep(fault.hang_seconds)
        if fault.status:
            return self.error(fault.status, headers=fault.headers)
        data = path.read_bytes()
        if fault.wrong:
            data = bytes([data[0] ^ 1]) + data[1:]
        start, asked = 0, self.headers.get("Range")
        if asked and not fault.no_range:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                return self.error(416, headers={"Content-Range": f"bytes */{len(data)}"})
        self.send_response(206 if start else 200)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        end = len(data) if fault.truncate is None else min(len(data), start + fault.truncate)
        try:
            for place in range(start, end, CHUNK):
                self.wfile.write(data[place:min(end, place + CHUNK)])
                if fault.chunk_seconds:
                    time.sleep(fault.chunk_seconds)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if end < len(data):
            self.close_connection = True
        return None


class CdnHandler(Handler):
    server_name = "cdn"

    def do_GET(self):
        self.note()
        if "Authorization" in self.headers:
            self.state.violations.append(f"a token came to the CDN: {self.path}")
            return self.answer(400)
        parts = urlsplit(self.path)
        name = unquote(parts.path).lstrip("/")
        path = self.state.root / name
        if parts.query != "signature=secret" or not path.is_file():
            return self.answer(403)
        return self.send_file(path, self.state.fault(path.name, "GET"))

    do_HEAD = do_GET


class HubHandler(Handler):
    def do_HEAD(self):
        self.serve()

    def do_GET(self):
        self.serve()

    def serve(self):
        self.note()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        is_api = parts[0] == "api"
        if is_api:
            parts = parts[1:]
        kind = "datasets" if parts[0] == "datasets" else "models"
        if parts[0] in ("datasets", "models"):
            parts = parts[1:]
        repo, rest = "/".join(parts[:2]), parts[2:]
        if repo in self.state.renamed:
            return self.answer(307, {"Location": self.path.replace(repo, self.state.renamed[repo], 1)})
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not (self.state.root / kind / repo).is_dir() or self.state.private.get(repo, token) != token:
            if token and token not in self.state.private.values() and token not in self.state.gated.values():
                return self.error(401, message="Invalid credentials in Authorization header")
            return self.error(401 if not token else 404, "RepoNotFound")
        if self.state.gated.get(repo, token) != token:
            return self.error(403 if token else 401, "GatedRepo")
        commit = self.state.commit(kind, repo)
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", commit):
            return self.error(404, "RevisionNotFound")
        if is_api:
            return self.list_files(kind, repo, commit)
        return self.resolve(kind, repo, commit, "/".join(rest[2:]))

    def list_files(self, kind, repo, commit):
        fault = self.state.fault(repo, "API")
        if fault.status:
            return self.error(fault.status, headers=fault.headers)
        names = self.state.headers.get(repo, self.state.files(kind, repo))
        body = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def resolve(self, kind, repo, commit, name):
        path = self.state.root / kind / repo / name
        if not path.is_file() or ".." in name.split("/"):
            return self.error(404, "EntryNotFound", headers={"X-Repo-Commit": commit})
        if self.command == "HEAD":
            fault = self.state.fault(path.name, "HEAD")
            if fault.hang_seconds:
                time.sleep(fault.hang_seconds)
            if fault.status:
                return self.error(fault.status, headers=fault.headers)
        git, sha256 = self.state.file_hashes(path)
        headers = {"X-Repo-Commit": commit}
        if not self.state.is_lfs(path):
            headers |= {"ETag": f'"{git}"'} | self.state.headers.get(path.name, {})
            return self.send_file(path, Fault("", 0) if self.command == "HEAD" else self.state.fault(path.name, "GET"), headers)
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(path.stat().st_size)}
        headers["Location"] = f"http://127.0.0.2:{self.state.cdn.server_port}/{quote(f'{kind}/{repo}/{name}')}?signature=secret"
        return self.answer(302, headers | self.state.headers.get(path.name, {}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with LoopbackHub(os.path.abspath(arguments.root), arguments.port) as hub:
        print(hub.endpoint, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
