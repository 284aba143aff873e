"""requirements.lock: the packages that qwen-edge ran with where a bundle was made, told by their own metadata.

pip's --hash wants the digests of all archives, and an installation keeps one only where pip was given an address
(direct_url.json). What an installation does keep is a digest of each file (RECORD). Both stand in comments.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import InvalidMarker, Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from qwen_edge import __version__
from qwen_edge.native.builds import chosen_build

_LINE = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+-]+)(?: ; (?P<marker>.+))?")
# What the installer writes into a package's metadata by itself.
_INSTALLERS_OWN = ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD", "uv_cache.json", "uv_build.json")


@dataclass(slots=True)
class _Locked:
    """One package, and the markers under which others ask for it; "" among them means always."""

    distribution: metadata.Distribution
    markers: set[str] = field(default_factory=set)


def lock_text(extras: tuple[str, ...] = ()) -> str:
    """Return the lockfile of what is installed here.

    Args:
        extras: Of qwen-edge, beside its core: ("onnx",).
    """
    lines = [
        f"# The packages that qwen-edge {__version__} ran with where this bundle was made:",
        f"# {platform.python_implementation()} {platform.python_version()}, {sysconfig.get_platform()}.",
        "# Install the same: pip install --no-deps -r requirements.lock, then qwen-edge itself with --no-deps.",
        "# pip's --hash is not here: an installation does not keep the digests of the archives it came from. `contents` is a",
        "# SHA-256 over the digests of the installed files (RECORD): equal for the same wheel.",
    ]
    build = chosen_build()
    if build is not None and build.version is not None and not extras:
        how = "built by: qwen-edge setup" if build.origin == "setup" else f"taken from {build.origin}"
        lines.append(f"# llama-cpp-python=={build.version} ({how})")
    for name, locked in sorted(_closure(extras).items()):
        distribution = locked.distribution
        line = f"{name}=={distribution.version}"
        if "" not in locked.markers:
            line += f" ; {' or '.join(f'({marker})' for marker in sorted(locked.markers))}"
        known = (("archive", _archive_digest(distribution)), ("contents", _contents_digest(distribution)))
        comment = ", ".join(f"{what} {digest}" for what, digest in known if digest)
        lines.append(f"{line}  # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def lock_differences(text: str) -> list[str]:
    """Return how this environment differs from a lockfile, a sentence each; lines for other platforms are left out."""
    found = []
    for line in text.splitlines():
        entry = _LINE.fullmatch(line.partition("#")[0].strip())
        if entry is None or not _applies(entry["marker"]):
            continue
        name, wanted = entry["name"], entry["version"]
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{name} {wanted} is not installed here")
            continue
        if here != wanted:
            found.append(f"{name} is {here} here, {wanted} was bundled")
    return found


def _applies(marker: str | None) -> bool:
    try:
        return marker is None or Marker(marker).evaluate()
    except InvalidMarker:
        return False


def _closure(extras: tuple[str, ...]) -> dict[str, _Locked]:
    """Return the installed packages that qwen-edge needs, by normalised name, itself left out."""
    found: dict[str, _Locked] = {}
    waiting = [(requirement, extras, "") for requirement in _own_requirements()]
    while waiting:
        text, wanted_extras, inherited = waiting.pop()
        marker = _marker_here(text, wanted_extras, inherited)
        if marker is None:
            continue
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # it runs without, as it did here
        entry = found.setdefault(name, _Locked(distribution))
        if marker in entry.markers or "" in entry.markers:
            continue
        entry.markers.add(marker)
        waiting += [(below, tuple(requirement.extras), marker) for below in distribution.requires or ()]
    return found


def _marker_here(text: str, extras: tuple[str, ...], inherited: str) -> str | None:
    """Return under which marker a requirement holds, "" for always; None where it does not hold here."""
    try:
        marker = Requirement(text).marker
    except InvalidRequirement:
        return None
    if marker is None:
        return inherited
    if not any(marker.evaluate({"extra": extra}) for extra in extras or ("",)):
        return None
    own = "" if re.search(r"\bextra\b", str(marker)) else str(marker)
    return (
        " and ".join(f"({part})" for part in (inherited, own) if part)
        if inherited and own
        else inherited or own
    )


def _own_requirements() -> list[str]:
    """Return what qwen-edge asks for; from pyproject.toml where it runs from its sources."""
    project_file = Path(__file__).parents[2] / "pyproject.toml"
    if not project_file.is_file():
        return metadata.requires("qwen-edge") or []
    import tomllib

    project: dict[str, Any] = tomllib.loads(project_file.read_text(encoding="utf-8"))["project"]
    extra_ones = (
        f'{requirement} ; extra == "{extra}"'
        for extra, requirements in project["optional-dependencies"].items()
        for requirement in requirements
    )
    return [*project["dependencies"], *extra_ones]


def _archive_digest(distribution: metadata.Distribution) -> str | None:
    """Return the SHA-256 of the archive that a package came from, where its installer wrote that down.

    Source: PEP 610, direct_url.json.
    """
    try:
        info = json.loads(distribution.read_text("direct_url.json") or "{}")["archive_info"]
        digest = info.get("hashes", {}).get("sha256") or info.get("hash", "").removeprefix("sha256=")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return digest if isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) else None


def _contents_digest(distribution: metadata.Distribution) -> str | None:
    """Return one digest over those of a package's files; None where it has no RECORD."""
    lines = sorted(_recorded(distribution))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def _recorded(distribution: metadata.Distribution) -> Iterator[str]:
    for file in distribution.files or ():
        is_own = file.parent.name.endswith(".dist-info") and file.name in _INSTALLERS_OWN
        # Scripts lie outside the package and begin with this interpreter's path.
        if file.hash is not None and ".." not in file.parts and not is_own:
            yield f"{file.as_posix()} {file.hash.mode}={file.hash.value}"
