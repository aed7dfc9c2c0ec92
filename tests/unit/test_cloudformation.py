"""What the template says, where moto does not make or enforce it: conditions, policies, rules."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cloudformation import REGION, Stack, template
from tests.iam import EC2, allows
from waveflow_ray.aws.copies import PREFIX as HASHES
from waveflow_ray.aws.kept import PREFIX as OUTCOMES
from waveflow_ray.doctor.bucket import PROBES
from waveflow_ray.jobs.index import CURSOR

PROVIDER = "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com"
STACK = Stack(
    GitHubRepository="band/waveflow", GitHubProviderArn=PROVIDER, AlarmEmail="a@b.example"
)
BUCKET = "arn:aws:s3:::waveflow-audio-123456789012-ap-northeast-2"
JOBS = f"arn:aws:sqs:{REGION}:123456789012:waveflow-jobs"
ROLE = "arn:aws:iam::123456789012:role/"
OWN = {"aws:ResourceTag/ray-cluster-name": "waveflow"}
OTHER = {"aws:ResourceTag/ray-cluster-name": "theirs"}
NEW = {"aws:RequestTag/ray-cluster-name": "waveflow", "ec2:InstanceType": "c7i.large"}
TO_EC2 = {"iam:PassedToService": "ec2.amazonaws.com"}


# --- the bucket


def rules(**parameters: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Stack(**parameters).resources["Bucket"]["LifecycleConfiguration"][
        "Rules"
    ]
    return found


def expires(key: str) -> list[int]:
    """After how many days an object that is current goes, by each rule that says so."""
    return [
        int(rule["ExpirationInDays"])
        for rule in rules()
        if "ExpirationInDays" in rule and key.startswith(rule.get("Prefix", ""))
    ]


@pytest.mark.parametrize("key", [f"{HASHES}00ff/songs%2Fa.wav", CURSOR, "songs/a.wav", "mixed/a"])
def test_what_the_guard_and_the_uploads_need_never_expires(key: str) -> None:
    """Copies that are not in the index are unknown to the guard of the last copy."""
    assert expires(key) == []


def test_what_only_repetitions_need_expires() -> None:
    """Webhooks after 14 days, as long as SQS can keep their message; probes of a dead doctor."""
    assert expires(f"{OUTCOMES}msg_1.json") == [14]
    assert expires(f"{PROBES}00ff") == [1]
    retention, outcomes = (template()["Parameters"][n] for n in ("MessageRetention", "OutcomeDays"))
    assert outcomes["MinValue"] * 86_400 >= retention["MaxValue"]


def test_parts_of_uploads_go_after_a_day() -> None:
    aborts = [rule for rule in rules() if "AbortIncompleteMultipartUpload" in rule]
    assert [rule["AbortIncompleteMultipartUpload"] for rule in aborts] == [
        {"DaysAfterInitiation": 1}
    ]
    assert "Prefix" not in aborts[0]


def test_versioning_is_off_until_it_is_wanted() -> None:
    """Not suspended, in which a deletion leaves a marker; and old versions go in either case."""
    assert "VersioningConfiguration" not in STACK.resources["Bucket"]
    bucket = Stack(BucketVersioning="true", NoncurrentDays="7").resources["Bucket"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    old = [r for r in rules(NoncurrentDays="7") if "NoncurrentVersionExpiration" in r]
    assert [r["NoncurrentVersionExpiration"] for r in old] == [{"NoncurrentDays": "7"}]


def test_the_bucket_outlives_the_stack() -> None:
    """Recordings are not deleted with it, nor when the bucket gets another name."""
    bucket = template()["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"


def test_a_bucket_that_is_there_is_not_touched() -> None:
    """Only the roles know it."""
    stack = Stack(CreateBucket="false", BucketName="ours")
    assert not stack.of_type("AWS::S3::Bucket") | stack.of_type("AWS::S3::BucketPolicy")
    assert allows(stack.policy_of("WorkerRole"), ("s3:GetObject", "arn:aws:s3:::ours/a.wav", {}))


# --- policies of the bucket and the queues


@pytest.mark.parametrize("name", ["BucketPolicy", "QueuePolicy", "DeadLettersPolicy"])
def test_only_tls_is_let_in(name: str) -> None:
    """Everyone else is denied everything, whatever their role says; nobody is allowed more."""
    policy = STACK.resources[name]["PolicyDocument"]["Statement"]
    service = "s3" if name == "BucketPolicy" else "sqs"
    resources = policy[0]["Resource"]
    arns = resources if isinstance(resources, list) else [resources]
    for arn in arns:
        need = (f"{service}:GetObject", arn)
        welcome = [*policy, {"Effect": "Allow", "Action": "*", "Resource": "*"}]
        assert not allows(welcome, (*need, {"aws:SecureTransport": "false"}))
        assert allows(welcome, (*need, {"aws:SecureTransport": "true"}))
    assert {statement["Principal"] for statement in policy} == {"*"}
    expected = {"BucketPolicy": [BUCKET, f"{BUCKET}/*"], "QueuePolicy": [JOBS]}
    assert arns == expected.get(name, [f"{JOBS}-dead"])


def test_only_the_job_queue_may_use_the_dead_letters() -> None:
    allowed = STACK.resources["DeadLetters"]["RedriveAllowPolicy"]
    assert allowed == {"redrivePermission": "byQueue", "sourceQueueArns": [JOBS]}


# --- alarms


def test_alarms_are_told_if_there_is_an_address() -> None:
    topic = f"arn:aws:sns:{REGION}:123456789012:waveflow-alarms"
    for stack, actions in ((STACK, [topic]), (Stack(), None)):
        alarms = stack.of_type("AWS::CloudWatch::Alarm").values()
        assert {a["MetricName"] for a in alarms} == {
            "ApproximateAgeOfOldestMessage",
            "ApproximateNumberOfMessagesVisible",
        }
        assert [a.get("AlarmActions") for a in alarms] == [actions, actions]
        assert bool(stack.of_type("AWS::SNS::Topic")) == (actions is not None)


# --- roles


IMAGES = f"arn:aws:ecr:{REGION}:123456789012:repository/waveflow"
UBUNTU = f"arn:aws:ssm:{REGION}::parameter/aws/service/canonical/ubuntu"
ALLOWED = [
    ("WorkerRole", "s3:ListBucket", BUCKET, {}),
    ("WorkerRole", "s3:DeleteObject", f"{BUCKET}/songs/a.wav", {}),
    ("WorkerRole", "sqs:ReceiveMessage", JOBS, {}),
    ("WorkerRole", "sqs:SendMessage", f"{JOBS}-dead", {}),
    ("WorkerRole", "ecr:BatchGetImage", IMAGES, {}),
    ("HeadRole", "sqs:DeleteMessage", JOBS, {}),
    ("HeadRole", "ssm:GetParameters", f"{UBUNTU}/server/24.04/stable/current/x/ami-id", {}),
    ("DeployRole", "ecr:PutImage", IMAGES, {}),
    ("HeadRole", "ec2:RunInstances", f"{EC2}instance/i-0", NEW),
    ("HeadRole", "ec2:TerminateInstances", f"{EC2}instance/i-0", OWN),
    ("HeadRole", "iam:PassRole", f"{ROLE}waveflow-worker", TO_EC2),
    ("DeployRole", "iam:PassRole", f"{ROLE}waveflow-head", TO_EC2),
    ("DeployRole", "ec2:TerminateInstances", f"{EC2}instance/i-0", OWN),
]
DENIED = [
    ("WorkerRole", "sqs:SendMessage", JOBS, {}),
    ("WorkerRole", "sqs:ReceiveMessage", f"{JOBS}-dead", {}),
    ("WorkerRole", "sqs:PurgeQueue", JOBS, {}),
    ("WorkerRole", "sqs:DeleteQueue", JOBS, {}),
    ("WorkerRole", "s3:GetObject", "arn:aws:s3:::theirs/a.wav", {}),
    ("WorkerRole", "s3:ListBucket", f"{BUCKET}-2", {}),
    ("WorkerRole", "s3:DeleteBucket", BUCKET, {}),
    ("WorkerRole", "s3:DeleteObjectVersion", f"{BUCKET}/songs/a.wav", {}),
    ("WorkerRole", "s3:PutLifecycleConfiguration", BUCKET, {}),
    ("WorkerRole", "s3:PutBucketPolicy", BUCKET, {}),
    ("WorkerRole", "ecr:PutImage", IMAGES, {}),
    ("WorkerRole", "ecr:BatchGetImage", f"{IMAGES}-2", {}),
    ("HeadRole", "ecr:PutImage", IMAGES, {}),
    ("HeadRole", "ssm:GetParameters", f"arn:aws:ssm:{REGION}:123456789012:parameter/ours", {}),
    ("WorkerRole", "ec2:RunInstances", f"{EC2}instance/i-0", NEW),
    ("WorkerRole", "ec2:DescribeInstances", "*", {"aws:RequestedRegion": REGION}),
    ("WorkerRole", "iam:PassRole", f"{ROLE}waveflow-worker", TO_EC2),
    ("HeadRole", "iam:PassRole", f"{ROLE}waveflow-head", TO_EC2),
    ("HeadRole", "iam:PassRole", f"{ROLE}admin", TO_EC2),
    ("HeadRole", "iam:PassRole", f"{ROLE}waveflow-worker", {"iam:PassedToService": "lambda"}),
    ("HeadRole", "ec2:RunInstances", f"{EC2}instance/i-0", {"ec2:InstanceType": "c7i.large"}),
    (
        "HeadRole",
        "ec2:RunInstances",
        f"{EC2}instance/i-0",
        NEW | {"ec2:InstanceType": "p5.48xlarge"},
    ),
    ("HeadRole", "ec2:RunInstances", f"{EC2}instance/i-0".replace(REGION, "us-east-1"), NEW),
    ("HeadRole", "ec2:TerminateInstances", f"{EC2}instance/i-0", OTHER),
    ("HeadRole", "ec2:TerminateInstances", f"{EC2}instance/i-0", {}),
    ("HeadRole", "ec2:StopInstances", f"{EC2}instance/i-0", OTHER),
    ("HeadRole", "ec2:CreateTags", f"{EC2}instance/i-0", OTHER | NEW),
    ("HeadRole", "ec2:DescribeInstances", "*", {"aws:RequestedRegion": "us-east-1"}),
    ("HeadRole", "ec2:CreateSecurityGroup", f"{EC2}security-group/sg-0", NEW),
    ("HeadRole", "sqs:SendMessage", JOBS, {}),
    ("HeadRole", "iam:CreateRole", f"{ROLE}x", {}),
    ("DeployRole", "iam:PassRole", f"{ROLE}waveflow-worker", TO_EC2),
    ("DeployRole", "s3:GetObject", f"{BUCKET}/songs/a.wav", {}),
    ("DeployRole", "sqs:ReceiveMessage", JOBS, {}),
    ("DeployRole", "ec2:TerminateInstances", f"{EC2}instance/i-0", OTHER),
    ("DeployRole", "ec2:AuthorizeSecurityGroupIngress", f"{EC2}security-group/sg-0", OTHER),
    ("DeployRole", "ec2:CreateTags", f"{EC2}security-group/sg-0", NEW),
    ("DeployRole", "cloudformation:UpdateStack", "*", {}),
]


@pytest.mark.parametrize(("role", "action", "resource", "context"), ALLOWED)
def test_is_allowed(role: str, action: str, resource: str, context: dict[str, str]) -> None:
    assert allows(STACK.policy_of(role), (action, resource, context))


@pytest.mark.parametrize(("role", "action", "resource", "context"), DENIED)
def test_is_not_allowed(role: str, action: str, resource: str, context: dict[str, str]) -> None:
    """By the policies alone: moto looks neither at conditions nor at SQS's and EC2's resources."""
    assert not allows(STACK.policy_of(role), (action, resource, context))


@pytest.mark.parametrize("role", ["WorkerRole", "HeadRole", "DeployRole"])
def test_no_role_has_a_wildcard(role: str) -> None:
    """No action with an asterisk; all resources only for what knows no resources."""
    for statement in STACK.policy_of(role):
        assert not [action for action in statement["Action"] if "*" in action]
        if statement["Resource"] == "*":
            unbound = ("ec2:Describe", "ecr:GetAuthorizationToken")
            assert all(action.startswith(unbound) for action in statement["Action"])


def test_only_the_named_runs_of_the_repository_get_the_role() -> None:
    trust = STACK.resources["DeployRole"]["AssumeRolePolicyDocument"]["Statement"]
    (statement,) = trust
    issuer = "token.actions.githubusercontent.com"
    assert statement["Principal"] == {"Federated": PROVIDER}
    assert statement["Condition"] == {
        "StringEquals": {
            f"{issuer}:aud": "sts.amazonaws.com",
            f"{issuer}:sub": "repo:band/waveflow:environment:production",
        }
    }
    assert "DeployRole" not in Stack().resources
    assert not Stack().of_type("AWS::IAM::OIDCProvider")
    assert Stack(GitHubRepository="band/waveflow").of_type("AWS::IAM::OIDCProvider")
