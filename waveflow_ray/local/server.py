"""A main server for one machine: it answers webhooks as the NestJS server does.

It keeps the hashes it has seen in SQLite. To a hash-check it answers with a follow-up job:
a duplicate job for a file it knows, an analysis job for a new one. When all stems of a stage
are in, it asks for the mix. Every webhook is written to a journal.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from waveflow_ray.local.aws import LOOPBACK
from waveflow_ray.messages import AnalysisJob, DuplicateJob, Job, MixJob, envelope
from waveflow_ray.outcomes import COMPLETION, HASH_CHECK, MIXING_COMPLETE

SCHEMA = """
create table stems (
    stem_id text primary key, stage_id text, filepath text not null, sha256 text,
    state text not null default 'uploaded'
);
create table stages (stage_id text primary key, mixes integer not null default 0);
"""
FOLLOW_UP: dict[str, type[Job]] = {"duplicate": DuplicateJob, "analysis": AnalysisJob}


@dataclass(frozen=True)
class Received:
    """One webhook: when it came and was answered (s, monotonic), and what it said."""

    path: str
    payload: dict[str, Any]
    webhook_id: str
    started: float
    ended: float = field(default=0.0)


class MainServer:
    """The server, in a thread of its own. ``with MainServer(send) as server``.

    Args:
        send: queues a message body.
        journal: a file that gets one JSON line per webhook.
        port: 0 takes a free one; `url` tells.
        host: the address to listen on.
    """

    def __init__(
        self,
        send: Callable[[str], object],
        journal: Path | None = None,
        port: int = 0,
        host: str = LOOPBACK,
    ) -> None:
        self.url = ""
        self.received: list[Received] = []
        self._send = send
        self._journal = journal
        self._port = port
        self._host = host
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.executescript(SCHEMA)
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="main-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._db.close()

    def register(self, stem_id: str, stage_id: str, filepath: str) -> None:
        """A musician uploaded a stem. The mix is asked for when all registered ones are in."""
        with self._lock, self._db:
            self._db.execute("insert or ignore into stages (stage_id) values (?)", (stage_id,))
            self._db.execute(
                "insert or ignore into stems (stem_id, stage_id, filepath) values (?, ?, ?)",
                (stem_id, stage_id, filepath),
            )

    def states(self) -> dict[str, str]:
        """What is known of every stem: uploaded, duplicate, analysis, analysed, deleted, failed."""
        with self._lock:
            return dict(self._db.execute("select stem_id, state from stems").fetchall())

    def mix_report(self) -> dict[str, Any] | None:
        """The last /mixing-complete."""
        reports = [r.payload for r in list(self.received) if r.path == MIXING_COMPLETE]
        return reports[-1] if reports else None

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        for path in (HASH_CHECK, COMPLETION, MIXING_COMPLETE):
            app.router.add_post(path, self._take)
        app.router.add_get("/", self._hello)
        # As Node's HTTP server: idle connections are closed after 5 s.
        runner = web.AppRunner(app, keepalive_timeout=5.0, access_log=None)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, self._host, self._port)
        self._loop.run_until_complete(site.start())
        self.url = f"http://{LOOPBACK}:{runner.addresses[0][1]}"
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _hello(self, _request: web.Request) -> web.Response:
        return web.Response(text="WaveFlow main server (local stand-in)\n")

    async def _take(self, request: web.Request) -> web.Response:
        started = time.monotonic()
        payload = await request.json()
        answer = await asyncio.to_thread(self._answer, request.path, payload)
        webhook_id = request.headers.get("webhook-id", "")
        received = Received(request.path, payload, webhook_id, started, time.monotonic())
        self.received.append(received)
        if self._journal is not None:
            with self._journal.open("a") as journal:
                journal.write(json.dumps(asdict(received), ensure_ascii=False) + "\n")
        return web.json_response(answer, status=201)

    def _answer(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if path == HASH_CHECK:
                return self._hash_check(payload)
            if path == COMPLETION:
                return self._completion(payload)
            # The production server answers so after every FAILURE.
            status = "success" if payload["status"] == "SUCCESS" else "error"
            return {"status": status}

    def _hash_check(self, payload: dict[str, Any]) -> dict[str, Any]:
        stem_id, sha256 = payload["stemId"], payload["audio_hash"]
        with self._db:
            self._db.execute(
                "insert or ignore into stems (stem_id, stage_id, filepath) values (?, ?, ?)",
                (stem_id, payload["stageId"], payload["filepath"]),
            )
            twin = self._db.execute(
                "select stem_id from stems where sha256 = ? and stem_id <> ? and filepath <> ?"
                " and state not in ('deleted', 'failed')",
                (sha256, stem_id, payload["filepath"]),
            ).fetchone()
            state = "duplicate" if twin else "analysis"
            self._db.execute(
                "update stems set sha256 = ?, state = ? where stem_id = ?", (sha256, state, stem_id)
            )
        model = FOLLOW_UP[state]
        fields = {k: payload[k] for k in ("stemId", "userId", "trackId", "filepath")}
        if twin:
            fields |= {"audio_hash": sha256}
        else:
            fields |= {k: payload[k] for k in ("timestamp", "original_filename")}
        self._send(envelope(model, f"{state}-{stem_id}-{_now_ms()}", **fields))
        return {"success": True, "isDuplicate": twin is not None}

    def _completion(self, payload: dict[str, Any]) -> dict[str, Any]:
        stem_id = payload["stemId"]
        row = self._db.execute(
            "select state, stage_id from stems where stem_id = ?", (stem_id,)
        ).fetchone()
        before, stage_id = row or ("uploaded", None)
        ended = {"duplicate": "deleted"}.get(before, "analysed")
        state = ended if payload["status"] == "SUCCESS" else "failed"
        with self._db:
            self._db.execute("update stems set state = ? where stem_id = ?", (state, stem_id))
        if stage_id is not None:
            self._ask_for_mix(stage_id)
        return {"status": "success"}

    def _ask_for_mix(self, stage_id: str) -> None:
        rows = self._db.execute(
            "select state, filepath from stems where stage_id = ? order by rowid", (stage_id,)
        ).fetchall()
        paths = [filepath for state, filepath in rows if state == "analysed"]
        if not paths or any(state in ("uploaded", "duplicate", "analysis") for state, _ in rows):
            return
        with self._db:
            self._db.execute("insert or ignore into stages (stage_id) values (?)", (stage_id,))
            self._db.execute("update stages set mixes = mixes + 1 where stage_id = ?", (stage_id,))
        (number,) = self._db.execute(
            "select mixes from stages where stage_id = ?", (stage_id,)
        ).fetchone()
        self._send(
            envelope(
                MixJob,
                f"mixing-{stage_id}-{_now_ms()}",
                stageId=stage_id,
                upstreamId=f"upstream-{number}",
                stem_paths=paths,
            )
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
