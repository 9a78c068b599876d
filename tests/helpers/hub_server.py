"""A stand-in for the Hugging Face Hub: folders of models on a file server of this machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.helpers.file_server import FileServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 10_000  # bytes from which a file is kept apart and known by its sha256


def add_repository(server: FileServer, name: str, folder: Path) -> None:
    """Serves the files of folder as OWNER/NAME. To use it, HF_ENDPOINT is server.url in the
    environment of a process."""
    listed = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        inside, data = file.relative_to(folder).as_posix(), file.read_bytes()
        sha1 = hashlib.sha1(data).hexdigest()
        entry = {"type": "file", "oid": sha1, "size": len(data), "path": inside}
        entry |= {"rfilename": inside, "blobId": sha1}
        tag = sha1
        if len(data) >= LARGE:
            tag = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": tag, "sha256": tag, "size": len(data), "pointerSize": 134}
        listed.append(entry)
        for revision in (COMMIT, "main"):
            at = f"/{name}/resolve/{revision}/{inside}"
            server.files[at] = data
            server.headers[at] = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
            if len(data) >= LARGE:
                server.headers[at] |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(data))}
    about = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": listed}
    for at, said in (
        (f"/api/models/{name}", about | {"tags": [], "downloads": 0}),
        (f"/api/models/{name}/revision/main", about),
        (f"/api/models/{name}/revision/{COMMIT}", about),
        (f"/api/models/{name}/tree/main", listed),
        (f"/api/models/{name}/tree/{COMMIT}", listed),
    ):
        server.files[at] = json.dumps(said).encode()
        server.headers[at] = {"Content-Type": "application/json"}
