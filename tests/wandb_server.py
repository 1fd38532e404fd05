"""A stand-in for the W&B server: enough of its API to keep runs, tables, artifacts and views, and to resume runs."""

from __future__ import annotations

import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "k" * 40
ENTITY = "someone"


@dataclass
class StoredRun:
    """What arrived of one run, as the server keeps it."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)  # of the last UpsertBucket
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    starts: int = 0


@dataclass
class StoredArtifact:
    id: str
    input: dict[str, Any]  # of CreateArtifact
    committed: bool = False


class Server(ThreadingHTTPServer):
    """Serves on a free port of this machine until `close`; `hanging` makes it accept requests and never answer,
    `refusing` answer all of them with 403."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: dict[str, StoredArtifact] = {}
        self.files: dict[str, bytes] = {}  # uploads, by path below /storage/
        self.projects: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}  # saved workspaces and reports, by id
        self.operations: list[str] = []
        self.hanging = False
        self.refusing = False
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """For a process that is to take this server for W&B."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle, such as a killed one, is nothing to report."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def upload_url(self, path: str) -> str:
        return f"{self.url}/storage/{path}"

    def query(self, text: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of the answer to a GraphQL request; empty for what is not known here."""
        found = re.search(r"\b(query|mutation)\s+(\w+)", text)
        operation = found.group(2) if found else ""
        with self.lock:
            self.operations.append(operation)
            answer = getattr(self, f"_on_{operation}", None)
            return answer(variables.get("input") or variables) if answer else {}

    # Runs

    def _on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "viewer": {
                "id": "viewer", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}",
                "teams": {"edges": [{"node": {"name": ENTITY}}]},
            }
        }  # fmt: skip

    def _on_GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "viewer", "entity": ENTITY}}

    def _on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        bucket = run and {
            **_bucket(run, variables["project"]),
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": len(run.events),
            "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
            "eventsTail": json.dumps([json.dumps(line) for line in run.events[-1:]]),
            "tags": run.fields.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": run.config.get("_wandb", {}).get("value", {}).get("t", {})}),
        }
        return {
            "model": {"id": "project", "name": variables["project"], "entity": _node(ENTITY), "bucket": bucket or None}
        }

    def _on_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or variables["id"].removeprefix("id-")
        run = self.runs.setdefault(name, StoredRun(name))
        run.starts += variables.get("name") is not None
        run.fields |= {key: value for key, value in variables.items() if value is not None}
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        return {
            "upsertBucket": {"bucket": _bucket(run, run.fields.get("project", "")), "inserted": len(run.history) == 0}
        }

    def _on_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": self.upload_url(f"{run}/{name}")} for name in variables["files"]]
        return {"createRunFiles": {"runID": f"id-{run}", "uploadHeaders": [], "files": files}}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """One file_stream request: lines at an offset for the growing files, a whole summary."""
        with self.lock:
            run = self.runs[name]
            for file, part in body.get("files", {}).items():
                lines = (
                    [json.loads(line) for line in part["content"]]
                    if file.endswith(".jsonl") or "summary" in file
                    else []
                )
                if file == "wandb-summary.json":
                    run.summary = lines[-1]
                elif file in ("wandb-history.jsonl", "wandb-events.jsonl"):
                    stored = run.history if file == "wandb-history.jsonl" else run.events
                    stored[part["offset"] :] = lines
            if body.get("complete"):
                run.exit_code = body.get("exitcode")

    # Artifacts

    def _on_ArtifactType(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}  # none of that name so far, whatever its type

    def _on_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = StoredArtifact(f"artifact-{len(self.artifacts)}", variables)
        self.artifacts[artifact.id] = artifact
        sequence = {"latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": artifact.id, "state": "PENDING", "artifactSequence": sequence}}}

    def _on_CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        id = variables["artifactID"]
        file = {"id": f"manifest-file-{id}", "uploadUrl": self.upload_url(f"{id}.manifest"), "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{id}", "file": file}}}

    def _on_CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "storagePath": None,
                "uploadUrl": self.upload_url(f"{file['artifactID']}/{file['name']}"),
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in variables["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _on_CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[variables["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.input["digest"]}}}

    def _on_UseArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"useArtifact": {"artifact": {"id": variables["artifactID"]}}}

    # Views: saved workspaces and reports

    def _on_upsertView(self, variables: dict[str, Any]) -> dict[str, Any]:
        id = variables.get("id") or f"view-{len(self.views)}"
        self.views[id] = {**variables, "id": id}
        return {"upsertView": {"view": self._view(id), "inserted": not variables.get("id")}}

    _on_UpsertView2 = _on_upsertView

    def _on_GetProjects(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"models": _edges([_project(name) for name in self.projects])}

    def _on_CreateProject(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.projects.append(variables["name"])
        project = {"id": variables["name"], "name": variables["name"], "entityName": ENTITY}
        return {"result": {"project": project, "model": project, "inserted": True}}

    def _on_ProjectInternalId(self, variables: dict[str, Any]) -> dict[str, Any]:
        known = variables["projectName"] in self.projects
        return {"project": {"id": "project", "internalId": "UHJvamVjdDoxOjE="} if known else None}

    def _on_ProjectViews(self, variables: dict[str, Any]) -> dict[str, Any]:
        found = [id for id, view in self.views.items() if view["type"] == variables.get("viewType", "runs")]
        return {"project": {"allViews": _edges([self._view(id) for id in found])}}

    def _on_View(self, variables: dict[str, Any]) -> dict[str, Any]:
        found = [id for id, view in self.views.items() if view["name"] == variables["viewName"]]
        return {"project": {"allViews": _edges([self._view(id) for id in found])}}

    def _view(self, id: str) -> dict[str, Any]:
        view = self.views[id]
        return {**view, "project": {**_node(view["projectName"]), "entityName": view["entityName"]}}


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._wait_while_hanging()
        if self.server.refusing:
            return self._answer({"errors": [{"message": "permission denied"}]}, 403)
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        if self.path.startswith("/graphql"):
            request = json.loads(body)
            self._answer({"data": self.server.query(request["query"], request.get("variables") or {})})
        elif stream:
            self.server.stream(stream.group(1), json.loads(body))
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._wait_while_hanging()
        with self.server.lock:
            self.server.files[self.path.removeprefix("/storage/")] = body
        self._answer({})

    def do_GET(self) -> None:
        self._wait_while_hanging()
        self._answer({})

    def _wait_while_hanging(self) -> None:
        if self.server.hanging:
            threading.Event().wait()  # for ever: the thread ends with the process

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


def _node(name: str) -> dict[str, Any]:
    return {"id": name, "name": name}


def _project(name: str) -> dict[str, Any]:
    created = "2026-01-01T00:00:00Z"
    return {
        **_node(name), "__typename": "Project", "entityName": ENTITY, "createdAt": created, "isBenchmark": False,
        "user": None,
    }  # fmt: skip


def _edges(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    page = {"endCursor": None, "hasNextPage": False, "__typename": "PageInfo"}
    return {"edges": [{"node": node, "cursor": ""} for node in nodes], "pageInfo": page, "totalCount": len(nodes)}


def _bucket(run: StoredRun, project: str) -> dict[str, Any]:
    return {
        "id": f"id-{run.name}",
        "name": run.name,
        "displayName": run.fields.get("displayName"),
        "description": None,
        "config": json.dumps(run.config),
        "sweepName": None,
        "project": {**_node(project), "entity": _node(ENTITY)},
        "historyLineCount": len(run.history),
    }
