from __future__ import annotations

import json

from tests.audit import judged


def test_vulnerable_packages_are_named_with_the_mend() -> None:
    """Only those; and packages that could not be looked up do not count as looked at."""
    known = {"id": "GHSA-1", "fix_versions": ["2.0"], "aliases": [], "description": "bad"}
    report = {
        "dependencies": [
            {"name": "good", "version": "1.0", "vulns": []},
            {"name": "bad", "version": "1.5", "vulns": [known]},
            {"name": "unheard-of", "skip_reason": "not found"},
        ],
        "fixes": [],
    }
    assert judged(json.dumps(report)) == (["bad 1.5: GHSA-1, mended in 2.0"], 2)


def test_no_answer_is_no_audit() -> None:
    """Without the network there is no report."""
    assert judged("") == ([], 0)
