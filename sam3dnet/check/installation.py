"""What is installed, and whether the versions go together."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from sam3dnet.check.result import CheckResult, judged, skipped, told
from sam3dnet.check.setting import Setting
from sam3dnet.comparison.stages import machine
from sam3dnet.preprocessing.folders import VARIABLES
from sam3dnet.preprocessing.free_memory import free_memory

GIB = 2**30


def check_installation(setting: Setting) -> Iterator[CheckResult]:
    """Tell versions, processor, memory and disk; judge the versions and nnU-Net's folders."""
    yield judge_versions(requires("sam3dnet") or [])
    about, total = machine(), psutil.virtual_memory().total
    yield told(
        "installation",
        "machine",
        f"{platform.uname().system} {platform.machine()}, {about['processor']}, {about['cores']} cores, "
        f"{total / GIB:.0f} GiB of memory, {free_memory() / GIB:.0f} free, load {psutil.getloadavg()[0]:.1f}",
    )
    for variable in VARIABLES:
        yield judge_folder(variable)


def judge_versions(requirements: list[str]) -> CheckResult:
    """Judge the installed versions of what the package requires; what is only for an extra is left out."""
    plain = [Requirement(re.sub(r"\s+", " ", text)) for text in requirements]
    wanted = [item for item in plain if item.marker is None or item.marker.evaluate({"extra": ""})]
    problems = [problem for problem in map(_problem_with, wanted) if problem]
    versions = f"Python {platform.python_version()}, torch {_version('torch')}, nnunetv2 {_version('nnunetv2')}"
    return judged("installation", "versions", not problems, "; ".join(problems) or versions)


def _problem_with(requirement: Requirement) -> str | None:
    found = _version(requirement.name)
    if found is None:
        return f"{requirement.name} is not installed; type: pip install '{requirement}'"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} {found} does not fit {requirement.specifier}; type: pip install '{requirement}'"
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def judge_folder(variable: str) -> CheckResult:
    """Judge that a folder of nnU-Net is there, and tell how much room it has; its path is not told."""
    folder = os.environ.get(variable)
    if not folder:
        return skipped("installation", variable, "not set; --root names the folders instead")
    if not Path(folder).is_dir():
        return judged("installation", variable, False, "it is set to a folder that does not exist; make it")
    return told("installation", variable, f"{shutil.disk_usage(folder).free / GIB:.0f} GiB free")
