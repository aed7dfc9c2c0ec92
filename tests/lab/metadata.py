"""The instance metadata service (IMDSv2) of the lab's hosts.

A host is known by the address it asks from, as on EC2. The credentials are those of the role in
its instance profile. A notice for a spot instance is a file that `Lab.spot_notice` writes.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

ADDRESS = ("169.254.169.254", 80)


class Metadata:
    """Answers for the instances that the fabric has.

    Args:
        lab: the lab's folder.
    """

    def __init__(self, lab: Path, region: str) -> None:
        self._notices = lab / "notices"
        self._region = region
        self._credentials: dict[str, str] = {}
        self.instances: dict[str, dict[str, Any]] = {}
        """By private address, as EC2 describes them."""

    def add(self, instance: dict[str, Any]) -> None:
        """Have its role's credentials at hand: boto3 waits a second for them, and no longer."""
        profile = instance.get("IamInstanceProfile", {}).get("Arn", "").rpartition("/")[2]
        if profile and profile not in self._credentials:
            self._credentials[profile] = self._credentials_of(profile)

    def start(self) -> None:
        """Serve in threads of this process."""
        metadata = self
        tokens: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                if self.path != "/latest/api/token":
                    self._answer(404)
                elif self.headers["X-aws-ec2-metadata-token-ttl-seconds"] is None:
                    self._answer(400)
                else:
                    token = secrets.token_urlsafe(24)
                    tokens.add(token)
                    self._answer(200, token)

            def do_GET(self) -> None:
                if self.headers["X-aws-ec2-metadata-token"] not in tokens:
                    self._answer(401)
                    return
                found = metadata.find(self.client_address[0], self.path.rstrip("/"))
                self._answer(404 if found is None else 200, found or "")

            def _answer(self, status: int, text: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a host that ends in the middle of a question

        server = Server(ADDRESS, Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def find(self, address: str, path: str) -> str | None:
        """The value at a path, for who asks from that address; None is a 404."""
        instance = self.instances.get(address)
        if instance is None:
            return None
        prefix = "/latest/meta-data/"
        if path == "/latest/dynamic/instance-identity/document":
            return json.dumps({"instanceId": instance["InstanceId"], "region": self._region})
        if not path.startswith(prefix):
            return None
        role = instance.get("IamInstanceProfile", {}).get("Arn", "").rpartition("/")[2]
        zone = instance["Placement"]["AvailabilityZone"]
        item = path.removeprefix(prefix)
        if item.startswith("iam/security-credentials"):
            if not role:
                return None
            if item.endswith("credentials"):
                return role
            self.add(instance)  # it may have been seen first before moto gave it its profile
            return self._credentials[role]
        if item == "spot/instance-action":
            return self._notice(instance["InstanceId"])
        return {
            "instance-id": instance["InstanceId"],
            "instance-type": instance["InstanceType"],
            "instance-life-cycle": instance.get("InstanceLifecycle", "on-demand"),
            "local-ipv4": instance["PrivateIpAddress"],
            "public-ipv4": instance.get("PublicIpAddress"),
            "placement/region": self._region,
            "placement/availability-zone": zone,
        }.get(item)

    def overdue(self, running: Iterable[str]) -> list[str]:
        """Instances whose notice has run out: EC2 takes them now."""
        names = (name for name in running if (self._notices / name).exists())
        return [name for name in names if time.time() > self._due(name)]

    def _due(self, name: str) -> float:
        return float((self._notices / name).read_text())

    def _notice(self, name: str) -> str | None:
        if not (self._notices / name).exists():
            return None
        due = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._due(name)))
        return json.dumps({"action": "terminate", "time": due})

    def _credentials_of(self, profile: str) -> str:
        """Those of the one role in a profile; they outlive the lab."""
        found = boto3.client("iam").get_instance_profile(InstanceProfileName=profile)
        (role,) = found["InstanceProfile"]["Roles"]
        got = boto3.client("sts").assume_role(
            RoleArn=role["Arn"], RoleSessionName="lab", DurationSeconds=43200
        )["Credentials"]
        return json.dumps(
            {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "AccessKeyId": got["AccessKeyId"],
                "SecretAccessKey": got["SecretAccessKey"],
                "Token": got["SessionToken"],
                "LastUpdated": "2026-01-01T00:00:00Z",
                "Expiration": got["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
