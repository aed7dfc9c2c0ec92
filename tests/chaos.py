"""Everything dies at some time, and every job ends once: `python -m tests.chaos --help`.

A real service on a Ray cluster of three nodes works off jobs, S3 and SQS (moto's server) are
behind a proxy that spoils answers, the main server fails in every way it knows, and processes
are killed. Which faults come, and when, is chosen by a seed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

from tests.proxy import Asked, Fault, proxy
from tests.support import ServiceProcess, World, encoded, make_world, music, wait_until
from waveflow_ray.aws.copies import Copies
from waveflow_ray.aws.sqs import Queue
from waveflow_ray.jobs.index import index_bucket
from waveflow_ray.local.aws import LocalAws
from waveflow_ray.messages import AnalysisJob, DuplicateJob, HashJob, Job, MixJob, envelope, parse

SETTINGS = {
    "WEBHOOK_TIMEOUT_S": "3",
    "WEBHOOK_PAUSE_S": "0.2",
    "WEBHOOK_MAX_PAUSE_S": "2",
    "RETRY_DELAY": "1",
    "MAX_RETRIES": "6",
    "VISIBILITY_TIMEOUT_S": "8",
    "DRAIN_TIMEOUT_S": "10",
    "JOB_TIMEOUT_S": "120",
    "MAX_IN_FLIGHT": "100",
}
PLAIN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # Ray's test cluster has no tokens
    "RAY_num_workers_soft_limit": "8",  # as `waveflow run` sets it
}
S3_FAULTS: tuple[Fault, ...] = ("unavailable", "error", "drop", "lose", "cut", "flip", "stall")
SQS_FAULTS: tuple[Fault, ...] = ("unavailable", "error", "drop", "lose", "again")
REFUSED = "refused"
"""Stems whose webhooks the main server refuses with 400."""
SMALL = 200
"""Objects that are hashed, again and again."""
WAITING = 40
"""Messages that wait in the queue: moto takes longer for each the more there are."""

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(nodes.pop(0), allow_graceful=False)
    nodes.append(cluster.add_node(num_cpus=1))
    print("replaced", flush=True)
cluster.shutdown()
"""


@dataclass
class Event:
    """A webhook that the main server acted on."""

    id: str
    path: str
    body: bytes


@dataclass
class Server:
    """A main server that fails at a webhook in every way, by chance."""

    rng: random.Random
    url: str = ""
    away: bool = False
    acted: list[Event] = field(default_factory=list)
    seen: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    attempts: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    overlaps: int = 0
    _under_way: Counter[str] = field(default_factory=Counter)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        payload, event_id = json.loads(body), request.headers["webhook-id"]
        subject = str(payload.get("stemId") or payload.get("stageId"))
        self.seen[event_id].add(body)
        self.attempts[event_id] += 1
        self._under_way[subject] += 1
        self.overlaps += self._under_way[subject] > 1
        try:
            return await self._answer(request, Event(event_id, request.path, body), payload)
        finally:
            self._under_way[subject] -= 1

    async def _answer(
        self, request: web.Request, event: Event, payload: dict[str, Any]
    ) -> web.StreamResponse:
        await asyncio.sleep(0.002)
        if self.away:
            return web.json_response({"message": "away"}, status=503)
        if str(payload.get("stemId")).startswith(REFUSED):
            self.refused.add(event.id)
            return web.json_response({"message": "no"}, status=400)
        fault = self.rng.choices(
            ["", "503", "500", "error", "hang", "drop", "lose"], [90, 2, 2, 2, 0.3, 2, 2]
        )[0]
        self.done[fault] += bool(fault)
        if fault in ("503", "500"):
            return web.json_response({"message": "broken"}, status=int(fault))
        if fault == "hang":
            await asyncio.sleep(30)
        if fault in ("drop", "lose"):
            if fault == "lose":
                self.acted.append(event)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "error" and event.path != "/hash-check" and payload["status"] == "SUCCESS":
            return web.json_response({"status": "error"}, status=201)
        self.acted.append(event)
        return web.json_response({"status": "success"}, status=201)


@contextmanager
def main_server(rng: random.Random) -> Iterator[Server]:
    state = Server(rng)
    started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", state.handle)
        # A handler ends with its connection, as one webhook does for us.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        state.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@dataclass
class Sizes:
    """How many jobs of each kind; pairs of copies that are both to be deleted."""

    hashes: int = 2000
    analyses: int = 200
    mixes: int = 40
    pairs: int = 30
    kills: int = 40
    away_s: float = 120.0


def jobs_for(world: World, sizes: Sizes, rng: random.Random) -> dict[str, str]:
    """Puts files into the bucket; returns message bodies by the job's event (webhook id)."""
    sounds = {
        "a.wav": encoded(music(3.0)),
        "b.flac": encoded(music(4.0, seed=1), format="FLAC"),
        "c.mp3": encoded(music(5.0, seed=2), format="MP3"),
        "no.wav": b"no sound at all " * 50,
        "long.wav": encoded(music(40.0, seed=3)),
    }
    for name, content in sounds.items():
        world.bucket.put(f"chaos/{name}", content, "audio/wav")
    for number in range(sizes.pairs):
        content = hashlib.sha256(str(number).encode()).digest() * 100
        for name in "ab":
            world.bucket.put(f"chaos/pair/{number}/{name}", content, "audio/wav")
    for number in range(SMALL):
        world.bucket.put(f"chaos/small/{number}", random.Random(number).randbytes(5000), "x")
    index_bucket(world.bucket, Copies(world.bucket, 100.0), prefix="chaos/")
    bodies: list[str] = []

    def add(kind: type[Job], number: int, **fields: Any) -> None:
        bodies.append(envelope(kind, f"{kind.kind}-{number}", **fields))

    names = sorted(sounds)
    for number in range(sizes.hashes):
        stem = f"{REFUSED}-{number}" if number % 100 == 7 else f"stem-{number}"
        add(HashJob, number, stemId=stem, filepath=f"chaos/small/{number % SMALL}")
        if number < sizes.analyses:  # of the same stem: their webhooks are one after the other
            key = f"chaos/{names[number % len(names)]}"
            add(AnalysisJob, number, stemId=stem, filepath=key)
    for number in range(sizes.pairs):
        for name in "ab":
            key = f"chaos/pair/{number}/{name}"
            add(DuplicateJob, len(bodies), stemId=f"pair-{number}-{name}", filepath=key)
    for number in range(sizes.mixes):
        stems = [f"chaos/{name}" for name in ("a.wav", "b.flac", "c.mp3", "long.wav")]
        add(MixJob, number, stageId=f"stage-{number // 2}", stem_paths=stems)
    bodies.append('{"task": "app.tasks.unheard_of", "id": "x", "stemId": "unheard-of"}')
    rng.shuffle(bodies)
    return {f"msg_{parse(body, 'm').fingerprint[:32]}": body for body in bodies}


class Cluster:
    """Three Ray nodes, in processes of their own."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            env=os.environ | env | PLAIN,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._line()

    def replace_node(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._line()

    def kill(self, title: str, rng: random.Random) -> bool:
        """kill -9 of one of the processes with this title."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except psutil.Error:
                continue
        if not found:
            return False
        rng.choice(found).kill()
        return True

    def memory_mb(self) -> float:
        """Resident memory of all its processes, without what they share."""
        total = 0.0
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                memory = process.memory_info()
                total += (memory.rss - memory.shared) / 2**20
            except psutil.Error:
                continue
        return total

    def object_store_mb(self) -> float:
        """What the object stores of all nodes hold."""
        ray_cli = Path(sys.executable).with_name("ray")
        summary = subprocess.run(
            [ray_cli, "memory", "--stats-only", "--address", self.address],
            env=os.environ | PLAIN,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = re.search(r"Plasma memory usage ([\d.]+) MiB", summary)
        assert found, summary
        return float(found.group(1))

    def end(self) -> None:
        tree = psutil.Process(self.process.pid).children(recursive=True)
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for process in tree:
            try:
                process.kill()
            except psutil.Error:
                continue
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def feeding(queue: Queue, bodies: list[str]) -> Iterator[None]:
    """Sends the messages as there is room for them."""
    stop = threading.Event()

    def feed() -> None:
        rest = list(bodies)
        while rest and not stop.is_set():
            if queue.facts().visible >= WAITING:
                stop.wait(0.1)
                continue
            batch, rest = rest[:10], rest[10:]
            queue.client.send_message_batch(
                QueueUrl=queue.url,
                Entries=[{"Id": str(n), "MessageBody": body} for n, body in enumerate(batch)],
            )

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def campaign(
    sizes: Sizes,
    seed: int,
    aws: LocalAws,
    folder: Path,
    tell: Callable[[str], object] = lambda _line: None,
    timeout_s: float = 3000.0,
) -> dict[str, Any]:
    """Run it; returns the table."""
    rng = random.Random(seed)
    world = make_world(aws, f"chaos-{seed}-{time.time_ns()}", max_receives=100)
    jobs = jobs_for(world, sizes, rng)
    spoils = random.Random(seed + 1)
    calm = threading.Event()

    def choose(asked: Asked) -> Fault | None:
        if calm.is_set() or spoils.random() > 0.02:
            return None
        return spoils.choice(SQS_FAULTS if asked.operation else S3_FAULTS)

    with ExitStack() as stack:
        spoiler = stack.enter_context(proxy(aws.endpoint, choose=choose, stall_s=1.0))
        server = stack.enter_context(main_server(random.Random(seed + 2)))
        cluster = Cluster({**aws.env, "AWS_MAX_ATTEMPTS": "4"})
        stack.callback(cluster.end)
        env = {
            **world.env,
            **SETTINGS,
            **PLAIN,
            "AWS_ENDPOINT_URL": spoiler.url,
            "WEBHOOK_URL": server.url,
            "RAY_ADDRESS": cluster.address,
        }
        running = [_started(env, folder)]
        stack.callback(lambda: running[-1].end())
        stack.enter_context(feeding(world.queue, list(jobs.values())))
        started = time.monotonic()

        def unfinished() -> int:
            ended = {event.id.rpartition("_")[0] for event in list(server.acted)}
            return len(jobs.keys() - ended - _refused(server))

        kills = [
            "worker", "worker", "ingress", "reporter", "worker", "service", "worker", "node", "away"
        ]  # fmt: skip
        killed: Counter[str] = Counter()
        for step in range(max(sizes.kills, len(kills))):
            if time.monotonic() - started > timeout_s or not unfinished():
                break
            # Between two blows some jobs get done, or some time passes.
            share = unfinished() - len(jobs) / (2 * max(sizes.kills, len(kills)))
            patience = time.monotonic() + 20
            while unfinished() > share and time.monotonic() < patience:
                time.sleep(0.1)
            time.sleep(rng.uniform(0.0, 2.0))
            what = kills[step] if step < len(kills) else rng.choice(kills[:-1])
            tell(f"{time.monotonic() - started:6.1f} s  {unfinished():5} to go  {what}")
            killed[what] += 1
            if what == "worker":
                cluster.kill(
                    rng.choice(["ray::analysis", "ray::mix", "ray::hash", "ray::IDLE"]), rng
                )
            elif what == "ingress":
                cluster.kill("ray::IngressActor", rng)
            elif what == "reporter":
                cluster.kill("ray::ReporterActor", rng)
            elif what == "node":
                cluster.replace_node()
            elif what == "service":
                (running[-1].stop if rng.random() < 0.5 else running[-1].process.kill)()
                running[-1].process.wait()
                running.append(_started(env, folder))
            else:
                server.away = True
                time.sleep(sizes.away_s)
                server.away = False
            if running[-1].process.poll() is not None:  # it went with what was killed
                tell("the service ended; started again")
                running.append(_started(env, folder))
        wait_until(
            lambda: not unfinished(), timeout_s, lambda: _left(jobs, server, running[-1].output())
        )
        calm.set()
        wait_until(
            lambda: sum(world.left().values()) == world.left()["dead"],
            90,
            lambda: f"{world.left()} {running[-1].output()}",
        )
        memory_mb, store_mb = cluster.memory_mb(), cluster.object_store_mb()
        running[-1].stop()
        scratch = [str(path) for path in running[-1].scratch.rglob("*") if path.is_file()]
        return {
            "seed": seed,
            "seconds": round(time.monotonic() - started),
            "killed": dict(killed),
            "spoiled S3 and SQS answers": dict(spoiler.done),
            "main server": dict(server.done),
            **_judged(jobs, server, world, sizes),
            "dead letters": (dead := world.dead_letters.facts().visible),
            # Those that were refused, and the one that nobody understands.
            "dead letters missing": max(0, len(_refused(server)) + 1 - dead),
            "files left in scratch": len(scratch),
            "MB of the cluster at the end": round(memory_mb),
            "MB in the object store at the end": store_mb,
        }


def _started(env: dict[str, str], folder: Path) -> ServiceProcess:
    """A service; one that died hard a moment ago may still have its names."""
    for _ in range(10):
        service = ServiceProcess(env, folder)
        try:
            return service.wait_ready()
        except AssertionError:
            service.end()
            time.sleep(2)
    return ServiceProcess(env, folder).wait_ready()


def _refused(server: Server) -> set[str]:
    return {event_id.rpartition("_")[0] for event_id in set(server.refused)}


def _left(jobs: dict[str, str], server: Server, output: str) -> str:
    ended = {event.id.rpartition("_")[0] for event in server.acted}
    rest = [body for event, body in jobs.items() if event not in ended]
    return f"{rest[:5]}\n{output}"


def _judged(jobs: dict[str, str], server: Server, world: World, sizes: Sizes) -> dict[str, Any]:
    """The rows that have to be 0, and those that tell how much there was."""
    by_job: dict[str, set[str]] = defaultdict(set)
    kinds: Counter[str] = Counter()
    for event in server.acted:
        job, _, status = event.id.rpartition("_")
        if status not in by_job[job]:
            by_job[job].add(status)
            code = (json.loads(event.body).get("result") or {}).get("error_code", "")
            kinds[f"{event.path} {status} {code}".strip()] += 1
    refused = _refused(server)
    lines = world.aws.log_text().splitlines()
    puts = Counter(line.split("PUT ")[1].split(" ")[0] for line in lines if "PUT /" in line)
    wrongly = sum(
        not any(world.bucket.exists(f"chaos/pair/{number}/{name}") for name in "ab")
        for number in range(sizes.pairs)
    )
    names = ("a.wav", "b.flac", "c.mp3", "no.wav", "long.wav")
    kept = (*names, *(f"small/{number}" for number in range(SMALL)))
    wrongly += sum(not world.bucket.exists(f"chaos/{name}") for name in kept)
    return {
        "jobs": len(jobs),
        "outcomes": dict(sorted(kinds.items())),
        "refused by the main server": len(refused),
        "lost": len(jobs.keys() - by_job.keys() - refused),
        "unknown": len(by_job.keys() - jobs.keys()),
        "conflicting outcomes": sum(len(statuses) > 1 for statuses in by_job.values()),
        "two in flight for one subject": server.overlaps,
        "webhooks repeated": sum(count > 1 for count in server.attempts.values()),
        "repeated with another body": sum(len(bodies) > 1 for bodies in server.seen.values()),
        "waveforms computed twice": sum(
            count > 1 for key, count in puts.items() if "/waveforms/stem" in key
        ),
        "objects wrongly deleted": wrongly,
    }


ZERO = (
    "lost",
    "unknown",
    "conflicting outcomes",
    "two in flight for one subject",
    "repeated with another body",
    "objects wrongly deleted",
    "dead letters missing",
    "files left in scratch",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Work off jobs while everything fails, and count what comes of it.",
        epilog="Example: make chaos | python -m tests.chaos --seed 7 --json",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hashes", type=int, default=2000)
    parser.add_argument("--analyses", type=int, default=200)
    parser.add_argument("--mixes", type=int, default=40)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--away", type=float, default=120.0, help="seconds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = Sizes(
        options.hashes, options.analyses, options.mixes, kills=options.kills, away_s=options.away
    )
    with LocalAws() as aws, tempfile.TemporaryDirectory() as folder:
        found = campaign(
            sizes, options.seed, aws, Path(folder), lambda line: print(line, file=sys.stderr)
        )
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("| what | found |\n| --- | --- |")
        for name, value in found.items():
            mark = " ✓" if name in ZERO and not value else " ✗" if name in ZERO else ""
            print(f"| {name} | {value}{mark} |")
    return 1 if any(found[name] for name in ZERO) else 0


if __name__ == "__main__":
    sys.exit(main())
