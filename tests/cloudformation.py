"""cluster/cloudformation.yaml as AWS reads it: conditions decided, references resolved.

What moto's CloudFormation does not make (policies of buckets and queues, alarms), and what its IAM
does not look at (resources other than S3's, conditions), is tested on this.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).parents[1] / "cluster" / "cloudformation.yaml"
REGION = "ap-northeast-2"
ACCOUNT = "123456789012"
NO_VALUE = object()

ARNS = {
    "AWS::ECR::Repository": f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{{}}",
    "AWS::S3::Bucket": "arn:aws:s3:::{}",
    "AWS::SQS::Queue": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{{}}",
    "AWS::SNS::Topic": f"arn:aws:sns:{REGION}:{ACCOUNT}:{{}}",
    "AWS::IAM::Role": f"arn:aws:iam::{ACCOUNT}:role/{{}}",
}
NAMES = {
    "AWS::ECR::Repository": "RepositoryName",
    "AWS::S3::Bucket": "BucketName",
    "AWS::SQS::Queue": "QueueName",
    "AWS::SNS::Topic": "TopicName",
    "AWS::IAM::Role": "RoleName",
    "AWS::IAM::InstanceProfile": "InstanceProfileName",
}


class _Loader(yaml.SafeLoader):
    """YAML with the short forms of CloudFormation's functions."""


def _function(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    assert isinstance(node, yaml.SequenceNode)
    return {name: loader.construct_sequence(node, deep=True)}


_Loader.add_multi_constructor("!", _function)


@cache
def template() -> dict[str, Any]:
    """The template as it is written."""
    loaded: dict[str, Any] = yaml.load(TEMPLATE.read_text(encoding="utf-8"), _Loader)
    return loaded


class Stack:
    """What the template makes with some parameters.

    Attributes:
        resources: the properties by logical id; without those whose condition does not hold.
    """

    def __init__(self, name: str = "waveflow", **parameters: str) -> None:
        declared = template()["Parameters"]
        assert parameters.keys() <= declared.keys()
        self.values: dict[str, Any] = {
            "AWS::AccountId": ACCOUNT,
            "AWS::Region": REGION,
            "AWS::Partition": "aws",
            "AWS::StackName": name,
            "AWS::NoValue": NO_VALUE,
        }
        for key, entry in declared.items():
            value = parameters.get(key, entry["Default"])
            self.values[key] = value.split(",") if "List" in entry["Type"] else value
        made = {
            key: entry
            for key, entry in template()["Resources"].items()
            if self._holds(entry.get("Condition"))
        }
        self._made = made
        self.resources = {key: self.resolve(entry["Properties"]) for key, entry in made.items()}

    def of_type(self, kind: str) -> dict[str, Any]:
        """Resources of a type, by logical id."""
        return {k: self.resources[k] for k, e in self._made.items() if e["Type"] == kind}

    def policy_of(self, role: str) -> list[dict[str, Any]]:
        """All statements of a role, given its logical id."""
        name = self.resources[role]["RoleName"]
        documents = [p["PolicyDocument"] for p in self.resources[role].get("Policies", [])]
        for policy in self.of_type("AWS::IAM::Policy").values():
            if name in policy["Roles"]:
                documents.append(policy["PolicyDocument"])
        return [statement for document in documents for statement in document["Statement"]]

    def resolve(self, value: Any) -> Any:
        """A value with all functions done."""
        if isinstance(value, list):
            return [r for item in value if (r := self.resolve(item)) is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            (name, argument), *_ = value.items()
            if name == "Ref":
                return self._ref(argument)
            if name.startswith("Fn::"):
                return getattr(self, "_" + name.removeprefix("Fn::").lower())(argument)
        found = {key: self.resolve(item) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not NO_VALUE}

    def _holds(self, condition: Any) -> bool:
        if condition is None:
            return True
        if isinstance(condition, str):
            return self._holds(template()["Conditions"][condition])
        ((name, argument),) = condition.items()
        if name == "Condition":
            return self._holds(argument)
        if name == "Fn::Not":
            return not self._holds(argument[0])
        if name == "Fn::And":
            return all(self._holds(each) for each in argument)
        assert name == "Fn::Equals", name
        left, right = self.resolve(argument)
        return bool(left == right)

    def _if(self, argument: list[Any]) -> Any:
        condition, yes, no = argument
        return self.resolve(yes if self._holds(condition) else no)

    def _ref(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        kind, physical = self._physical(name)
        return ARNS[kind].format(physical) if kind == "AWS::SNS::Topic" else physical

    def _getatt(self, path: str) -> str:
        name, _, attribute = path.partition(".")
        kind, physical = self._physical(name)
        return ARNS[kind].format(physical) if attribute == "Arn" else physical

    def _sub(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            name: str = match[1]
            return str(self._getatt(name) if "." in name else self._ref(name))

        return re.sub(r"\$\{([^}]+)\}", value, text)

    def _physical(self, name: str) -> tuple[str, str]:
        entry = self._made[name]
        kind = entry["Type"]
        if kind not in NAMES:
            return kind, name
        return kind, str(self.resolve(entry["Properties"][NAMES[kind]]))
