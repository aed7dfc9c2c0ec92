"""Whether IAM allows a call, decided from the policies alone.

moto decides only about actions, and about resources of S3; conditions it takes for met. This knows
what the template uses, and fails on anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.cloudformation import ACCOUNT, REGION

Statement = dict[str, Any]
Need = tuple[str, str, dict[str, str]]
"""An action, the resource it is done to, and the context of the request."""

EC2 = f"arn:aws:ec2:{REGION}:{ACCOUNT}:"
OF_INSTANCES = ("TerminateInstances", "StopInstances", "StartInstances")


def allows(policy: list[Statement], need: Need) -> bool:
    """One statement allows it, and none denies it."""
    effects = {statement["Effect"] for statement in policy if _applies(statement, *need)}
    return effects == {"Allow"}


def _applies(statement: Statement, action: str, resource: str, context: dict[str, str]) -> bool:
    return (
        any(_like(pattern, action) for pattern in _several(statement["Action"]))
        and any(_like(pattern, resource) for pattern in _several(statement["Resource"]))
        and all(
            _met(operator, wanted, context.get(key))
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _met(operator: str, wanted: Any, given: str | None) -> bool:
    if given is None:
        return False
    match operator:
        case "StringEquals" | "Bool":
            return given in _several(wanted)
        case "StringLike":
            return any(_like(pattern, given) for pattern in _several(wanted))
    raise NotImplementedError(operator)


def _several(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _like(pattern: str, text: str) -> bool:
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, text) is not None


def needs(
    operation: str, request: dict[str, Any], tags: Callable[[str], dict[str, str]]
) -> Iterator[Need]:
    """What a call of EC2's needs, by the Service Authorization Reference.

    Args:
        tags: those of an instance or a security group, given its id.
    """
    action = f"ec2:{operation}"
    context = {"aws:RequestedRegion": REGION}
    if operation.startswith("Describe"):
        yield action, "*", context
    elif operation == "RunInstances":
        yield from _run(action, request, context)
    elif operation in OF_INSTANCES:
        for name in request["InstanceIds"]:
            yield action, f"{EC2}instance/{name}", context | _of("Resource", tags(name))
    elif operation == "CreateTags":
        given = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
        for name in request["Resources"]:
            about = _of("Resource", tags(name)) | _of("Request", given)
            yield action, f"{EC2}instance/{name}", context | about
    elif operation == "CreateSecurityGroup":
        about = context | _of("Request", _given(request, "security-group"))
        yield action, f"{EC2}security-group/sg-0", about
        yield action, f"{EC2}vpc/{request['VpcId']}", context
        yield "ec2:CreateTags", f"{EC2}security-group/sg-0", about | {"ec2:CreateAction": operation}
    elif operation == "AuthorizeSecurityGroupIngress":
        name = request["GroupId"]
        yield action, f"{EC2}security-group/{name}", context | _of("Resource", tags(name))
    else:
        raise NotImplementedError(operation)


def _run(action: str, request: dict[str, Any], context: dict[str, str]) -> Iterator[Need]:
    about = context | {"ec2:InstanceType": request["InstanceType"]}
    tagged = about | _of("Request", _given(request, "instance"))
    yield action, f"{EC2}instance/i-0", tagged
    yield "ec2:CreateTags", f"{EC2}instance/i-0", tagged | {"ec2:CreateAction": "RunInstances"}
    yield action, f"arn:aws:ec2:{REGION}::image/{request['ImageId']}", about
    yield action, f"{EC2}key-pair/{request['KeyName']}", about
    yield action, f"{EC2}subnet/{request['SubnetId']}", about
    yield action, f"{EC2}network-interface/eni-0", about
    yield action, f"{EC2}volume/vol-0", about
    for name in request["SecurityGroupIds"]:
        yield action, f"{EC2}security-group/{name}", about
    role = request["IamInstanceProfile"]["Name"]
    passed = {"iam:PassedToService": "ec2.amazonaws.com"}
    yield "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{role}", passed


def _given(request: dict[str, Any], kind: str) -> dict[str, str]:
    specifications = request.get("TagSpecifications", [])
    return {t["Key"]: t["Value"] for s in specifications if s["ResourceType"] == kind
            for t in s["Tags"]}  # fmt: skip


def _of(whose: str, tags: dict[str, str]) -> dict[str, str]:
    return {f"aws:{whose}Tag/{key}": value for key, value in tags.items()}
