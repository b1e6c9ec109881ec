"""Where a run comes from: command, versions, commit, machine. Written into run.json, so that a number can be traced."""

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).resolve().parents[3]


def provenance() -> dict[str, Any]:
    """What this process is and runs on."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "torchane": package_version("torchane"),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def processor() -> str:
    """Its name."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    """None where the package runs from its source and was never installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit of the source that runs, with `+` if it was changed since; None outside a checkout of it."""
    if not (SOURCE / "src" / "torchane").is_dir() or not (SOURCE / ".git").exists():
        return None
    head = _git("rev-parse", "HEAD")
    return head and head + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", "src", "csrc") else "")


def _git(*arguments: str) -> str | None:
    """None where git is missing or refuses: a run does not depend on it."""
    try:
        done = subprocess.run(["git", "-C", SOURCE, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
