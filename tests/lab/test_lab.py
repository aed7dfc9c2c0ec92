"""`ray up` of the project's cluster on real hosts: it scales, survives and goes away.

One cluster for all tests, in the order of this file: `make lab`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import requests

from tests.chaos import feeding
from tests.lab.cluster import MAX_WORKERS, Account, deploy, open_lab, project_config, write
from tests.lab.conftest import TIMES
from tests.lab.lab import GATEWAY, REPOSITORY, Lab, why_not
from tests.lab.traffic import Batch, Ledger, Sizes, make_batch
from tests.prometheus import ask, check_queries, dashboard_queries, rules
from tests.support import Receiver, make_wheel, receiver, wait_until
from waveflow_ray.metrics import TABLE

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

PATIENCE_S = 600.0
"""For everything that is waited for: far more than it takes."""
MIXED = Sizes()
MORE = Sizes(hashes=0, analyses=0, duplicates=0, mixes=24, bad=0, slow=True)
WORKERS = MAX_WORKERS
NOTICE_S = 25.0
"""Shorter than the two minutes of EC2."""


PROMETHEUS = f"""
mkdir /tmp/prometheus; cd /tmp/prometheus; cp {REPOSITORY}/cluster/prometheus/*.yml .
setsid prometheus --config.file=prometheus.yml --storage.tsdb.path=data \\
    --web.listen-address=:9090 > log 2>&1 < /dev/null &
"""
"""Prometheus on the head, with our rules; Debian's package."""


@dataclass
class Cluster:
    """What `ray up` made, and who uses it."""

    lab: Lab
    config: dict[str, Any]
    path: str
    account: Account
    main_server: Receiver
    _batches: int = 0

    def head(self) -> str:
        """Id of the head's instance."""
        (head,) = [i for i in self.lab.instances() if tags(i)["ray-node-type"] == "head"]
        return str(head["InstanceId"])

    def workers(self, *, joined: bool = False) -> list[dict[str, Any]]:
        """Instances of workers; only those on which Ray was started, if wanted."""
        found = [i for i in self.lab.instances() if tags(i)["ray-node-type"] == "worker"]
        return [i for i in found if not joined or tags(i).get("ray-node-status") == "up-to-date"]

    def batch(self, sizes: Sizes) -> Batch:
        """New jobs."""
        self._batches += 1
        return make_batch(self.account, f"batch-{self._batches}", sizes)

    def ledger(self) -> Ledger:
        """An empty one; it does not know the webhooks of earlier jobs."""
        self.main_server.received.clear()
        return Ledger(self.main_server, self.account)

    def mixes_until(
        self, ledger: Ledger, reached: Callable[[], bool], beside: Batch | None = None
    ) -> None:
        """Keep some mixes in hand until it is so, however fast they are done.

        Args:
            beside: of these jobs, one is sent every second.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert time.monotonic() < deadline, self.explain(ledger)
            batches = [beside.take(1)] if beside else []
            if len(ledger.unfinished()) < MORE.mixes:
                batches.append(self.batch(MORE))
            for batch in batches:
                ledger.batches.append(batch)
                for body in batch.bodies:
                    self.account.queue.send(body)
            time.sleep(1.0)

    def busy_worker(self, ledger: Ledger) -> str:
        """Id of an instance that is at work on a mix, among those that were seen to join."""
        busy: list[str] = []

        def found() -> bool:
            for worker in self.workers(joined=True):
                name = str(worker["InstanceId"])
                titles = self.lab.node(name, "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'; true")
                if "ray::mix" in titles:
                    busy.append(name)
            return bool(busy)

        self.mixes_until(ledger, found)
        return busy[0]

    def settle(self, ledger: Ledger, *, repeats: bool = False) -> None:
        """All jobs have ended, each once and right, and no message is left."""
        wait_until(lambda: not ledger.unfinished(), PATIENCE_S, lambda: self.explain(ledger), 0.3)
        wait_until(
            lambda: self.account.left() == (0, 0), PATIENCE_S, lambda: self.explain(ledger), 0.3
        )
        assert ledger.wrongs(repeats=repeats) == []

    def explain(self, ledger: Ledger) -> str:
        """For what took too long."""
        log = "/tmp/ray/session_latest/logs/monitor.log"
        seen = self.lab.node(self.head(), f"ray status; tail -30 {log} | cut -c-300; true")
        return f"{self.lab.logs()}\n{seen}\n{ledger.explain()}"


def tags(instance: dict[str, Any]) -> dict[str, str]:
    """As a dictionary."""
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}


class Clock:
    """Notes in the table how long things took."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def note(self, what: str) -> None:
        """Since it was made."""
        TIMES.append((what, f"{time.monotonic() - self.started:6.1f} s"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The account deployed, and `ray up` done; nothing else was called."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    config = project_config()
    clock = Clock()
    lab = open_lab(config)
    with lab, receiver(host=GATEWAY) as main_server:
        account = deploy(lab)
        path = write(lab, config, account.settings | {"WEBHOOK_URL": main_server.url})
        clock.note("lab and account")
        clock = Clock()
        lab.operator(f"ray up --no-config-cache -y {path}", PATIENCE_S)
        clock.note("ray up")
        cluster = Cluster(lab, config, path, account, main_server)
        if shutil.which("prometheus"):
            lab.node(cluster.head(), PROMETHEUS, user="root")
        yield cluster


def test_the_service_runs_after_ray_up(cluster: Cluster) -> None:
    """Its start commands are all that it needs."""
    said = cluster.lab.operator(f"cluster/waveflow --config {cluster.path} status")
    assert "is running" in said


def test_jobs_bring_workers_and_idleness_ends_them(cluster: Cluster) -> None:
    """200 jobs of every kind end right, and so do mixes for as long as the workers take."""
    assert cluster.workers() == []
    ledger = cluster.ledger()
    jobs = cluster.batch(MIXED)
    ledger.batches.append(jobs)
    clock = Clock()
    with feeding(cluster.account.queue, jobs.bodies):
        for count in range(1, WORKERS + 1):
            cluster.mixes_until(ledger, lambda c=count: len(cluster.workers(joined=True)) >= c)
            clock.note(f"worker {count} of {WORKERS} joined, after the first job was sent")
        wait_until(
            lambda: not ledger.unfinished(), PATIENCE_S, lambda: cluster.explain(ledger), 0.3
        )
    clock.note(f"{len(ledger.expected())} jobs ended")
    cluster.settle(ledger)
    clock = Clock()
    wait_until(lambda: not cluster.workers(), PATIENCE_S, cluster.lab.logs, 0.3)
    clock.note("idle workers gone")


def test_instances_are_what_the_cluster_file_says(cluster: Cluster) -> None:
    """Type, profile, market, disk, tags and security group, of the head and of workers."""
    ec2 = cluster.lab.client("ec2")
    instances = cluster.lab.instances("running", "shutting-down", "terminated")
    assert len(instances) > WORKERS
    for instance in instances:
        kind = tags(instance)["ray-user-node-type"]
        wanted = cluster.config["available_node_types"][kind]["node_config"]
        assert instance["InstanceType"] == wanted["InstanceType"]
        market = wanted.get("InstanceMarketOptions", {}).get("MarketType", "")
        assert instance.get("InstanceLifecycle", "") == market
        for specification in wanted.get("TagSpecifications", []):
            for tag in specification["Tags"]:
                assert tags(instance)[tag["Key"]] == tag["Value"]
    first = next(i for i in instances if tags(i)["ray-node-type"] == "worker")
    assert tags(first)["ray-user-node-type"] == "worker-spot"
    (head,) = cluster.lab.instances()
    wanted = cluster.config["available_node_types"][tags(head)["ray-user-node-type"]]["node_config"]
    assert head["IamInstanceProfile"]["Arn"].endswith(f"/{wanted['IamInstanceProfile']['Name']}")
    (disk,) = wanted["BlockDeviceMappings"]
    (device,) = head["BlockDeviceMappings"]
    (volume,) = ec2.describe_volumes(VolumeIds=[device["Ebs"]["VolumeId"]])["Volumes"]
    assert volume["Size"] == disk["Ebs"]["VolumeSize"]
    assert volume["VolumeType"] == disk["Ebs"]["VolumeType"]
    (group,) = ec2.describe_security_groups(
        GroupIds=[g["GroupId"] for g in head["SecurityGroups"]]
    )["SecurityGroups"]
    from_outside = {
        (rule["FromPort"], allowed["CidrIp"])
        for rule in group["IpPermissions"]
        for allowed in rule["IpRanges"]
    }
    rules = cluster.config["provider"]["security_group"].get("IpPermissions", [])
    wanted_rules = {(r["FromPort"], allowed["CidrIp"]) for r in rules for allowed in r["IpRanges"]}
    assert from_outside == wanted_rules | {(22, "0.0.0.0/0")}  # the last one is Ray's own


def test_a_worker_is_lost_in_the_middle_of_mixes(cluster: Cluster) -> None:
    """Its instance is terminated by the EC2 API; the host is gone without a word."""
    ledger = cluster.ledger()
    name = cluster.busy_worker(ledger)
    cluster.lab.terminate(name)
    clock = Clock()
    cluster.settle(ledger, repeats=True)
    clock.note("all ended after a worker was terminated")


def test_aws_takes_a_spot_instance_back(cluster: Cluster) -> None:
    """The node is drained when the notice comes, and the instance is taken when it has run out."""
    ledger = cluster.ledger()
    name = cluster.busy_worker(ledger)
    cluster.lab.spot_notice(name, NOTICE_S)
    clock = Clock()

    def heeded() -> bool:
        return "AWS takes this instance away" in cluster.lab.node(name, "cat ~/.waveflow/node.log")

    cluster.mixes_until(ledger, heeded)
    clock.note("spot notice heeded")
    wait_until(
        lambda: name not in {i["InstanceId"] for i in cluster.lab.instances()},
        PATIENCE_S,
        lambda: cluster.explain(ledger),
        0.3,
    )
    cluster.settle(ledger, repeats=True)
    clock.note("all ended after a spot instance was taken back")


def test_the_head_is_lost_in_the_middle_of_mixes(cluster: Cluster) -> None:
    """All of Ray on the head is killed; it comes back by itself, and SQS has kept the jobs."""
    head = cluster.head()
    ledger = cluster.ledger()
    cluster.busy_worker(ledger)
    before = {worker["InstanceId"] for worker in cluster.workers()}
    cluster.lab.node(head, "pkill -9 -f 'gcs_server|raylet|ray::|ray/dashboard|ray/autoscaler'")
    clock = Clock()
    cluster.settle(ledger, repeats=True)
    clock.note("all ended after Ray was killed on the head")
    assert cluster.head() == head
    after = {worker["InstanceId"] for worker in cluster.workers()}
    TIMES.append(
        ("workers before that, and those of them after it", f"{len(before)}, {len(before & after)}")
    )


def test_ray_up_again_after_everything_died_on_the_head(cluster: Cluster) -> None:
    """Nothing is left on the head that could start anything; `ray up` does."""
    ledger = cluster.ledger()
    cluster.mixes_until(ledger, lambda: len(cluster.main_server.accepted) > 0)
    before = {worker["InstanceId"] for worker in cluster.workers()}
    cluster.lab.node(cluster.head(), f"pkill -9 -u {cluster.lab.ssh_user}; true", user="root")
    clock = Clock()
    cluster.lab.operator(f"ray up --no-config-cache -y {cluster.path}", PATIENCE_S)
    clock.note("ray up on a head where all was killed")
    cluster.settle(ledger, repeats=True)
    clock.note("all ended after that")
    after = {worker["InstanceId"] for worker in cluster.workers()}
    TIMES.append(
        ("workers before that, and those of them after it", f"{len(before)}, {len(before & after)}")
    )


def test_a_new_version_takes_over_under_load(cluster: Cluster) -> None:
    """cluster/deploy, with mixes in hand and a hash every second: none lost, none told of twice."""
    hashes = cluster.batch(Sizes(hashes=1000, analyses=0, duplicates=0, mixes=0, bad=0))
    ledger = cluster.ledger()
    wheel = make_wheel(cluster.lab.folder, "9.9.9")
    command = f"cluster/deploy --config {cluster.path} {wheel}"
    clock = Clock()
    with ThreadPoolExecutor(1) as threads:
        deploy = threads.submit(cluster.lab.operator, command, PATIENCE_S)
        cluster.mixes_until(ledger, deploy.done, hashes)
        assert "WaveFlow 9.9.9+" in deploy.result()
    clock.note("cluster/deploy")
    times = sorted(got.ended for got in cluster.main_server.accepted)  # while hashes were sent
    cluster.settle(ledger)
    gap_s = max(after - before for before, after in pairwise(times))
    TIMES.append(("longest time without a webhook meanwhile", f"{gap_s:6.1f} s"))
    said = cluster.lab.operator(f"cluster/waveflow --config {cluster.path} status")
    assert "9.9.9+" in said


def test_without_spot_capacity_workers_are_on_demand(cluster: Cluster) -> None:
    """EC2 has no spot instances, and says so; Ray alone would ask for them again and again."""
    wait_until(lambda: not cluster.workers(), PATIENCE_S, cluster.lab.logs, 0.3)
    cluster.lab.spot_capacity(False)
    ledger = cluster.ledger()
    clock = Clock()
    try:
        cluster.mixes_until(ledger, lambda: bool(cluster.workers(joined=True)))
        clock.note("a worker on demand joined, without spot capacity")
        kinds = {tags(worker)["ray-user-node-type"] for worker in cluster.workers()}
        assert kinds == {"worker-ondemand"}
    finally:
        cluster.lab.spot_capacity(True)
    cluster.settle(ledger)


def test_prometheus_has_every_metric(cluster: Cluster) -> None:
    """Each metric of the documents, and data for each query of the dashboard; the rules load."""
    if not shutil.which("prometheus"):
        pytest.skip("Debian's package prometheus is not installed")
    (head,) = [i for i in cluster.lab.instances() if i["InstanceId"] == cluster.head()]
    url = f"http://{head['PrivateIpAddress']}:9090"
    alerts = requests.get(f"{url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    found = {rule["name"] for group in alerts for rule in group["rules"]}
    assert found == {rule.get("alert") or rule["record"] for rule in rules()}
    assert check_queries(url) == []

    def without_data() -> list[str]:
        names = [f"ray_{m.name}" + "_count" * (m.kind == "histogram") for m in TABLE]
        queries = names + [query for query in dashboard_queries() if "ALERTS" not in query]
        return [answer.query for answer in (ask(url, q) for q in queries) if not answer.series]

    ledger = cluster.ledger()
    jobs = cluster.batch(MIXED)  # with some that fail
    ledger.batches.append(jobs)
    with feeding(cluster.account.queue, jobs.bodies):
        cluster.mixes_until(ledger, lambda: without_data() == [])
    cluster.settle(ledger)


def test_ray_down_leaves_nothing(cluster: Cluster) -> None:
    """No instance is left, not even of a node type that the head started."""
    clock = Clock()
    cluster.lab.operator(f"ray down -y {cluster.path}", PATIENCE_S)
    wait_until(lambda: not cluster.lab.instances(), 60, cluster.lab.logs)
    clock.note("ray down")
