"""Code that is deployed to a running cluster: unpacked on the head, sent to the nodes by Ray.

The packages that it needs are those of the image; a release that needs others is refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

KEPT = 3


class ReleaseError(Exception):
    """The release was not taken over; the text says why and what to do."""


def unpack(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a folder of its own below `folder`, and return that.

    Raises:
        ReleaseError: it is no wheel, or needs packages that are not here.
    """
    if missing := unmet(wheel):
        raise ReleaseError(
            f"{wheel.name} needs {', '.join(missing)}, which the nodes do not have: build an image "
            "with them, and deploy that with `cluster/deploy --image`."
        )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:8]
    target = folder / f"{wheel.stem}-{digest}"
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--no-deps", "--no-index", "--target", str(part), str(wheel)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ReleaseError(f"{wheel.name} cannot be installed: {done.stderr.strip()[-1000:]}")
        part.rename(target)
    return target


def unmet(wheel: Path) -> list[str]:
    """Requirements of a wheel, its extras left out, that what is installed here does not meet."""
    missing = []
    for line in _metadata(wheel):
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            met = requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            met = False
        if not met:
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def _metadata(wheel: Path) -> list[str]:
    """Its Requires-Dist lines."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            headers = HeaderParser().parsestr(archive.read(name).decode())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ReleaseError(f"{wheel} cannot be read as a wheel: {error}") from error
    return headers.get_all("Requires-Dist", [])


def use(release: Path, link: Path) -> None:
    """Make `link` name the release, which a restarted head starts; forget the oldest ones."""
    new = link.with_name(f"{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(release)
    os.replace(new, link)
    release.touch()
    others = (path for path in release.parent.iterdir() if path.is_dir())
    for old in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
