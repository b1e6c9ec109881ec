"""Runs doctor's checks in a process that may crash: python -m torchane.runtime.ane.doctor.child FOLDER [--quick] [--skip NAME]...

Every line of standard output is one JSON object: {"machine": ...}, then {"begin": name} and {"done": name, "found": ...} for
each check, {"missing": why} where there is no engine. What began and is not done when the process ends is what ended it.
"""

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchane.errors import AppleError, TorchaneError
from torchane.runtime.ane import framework
from torchane.runtime.ane.cache import CompileCache
from torchane.runtime.ane.device import AneDevice
from torchane.runtime.ane.doctor.checks import all_checks
from torchane.runtime.ane.first_light import look


def run_checks(found: framework.Framework, folder: Path, quick: bool, skip: Sequence[str], patience: float = 1.0) -> None:
    _say(machine={"routes": dict(found.routes), "info": dict(found.info), "build": found.build, "macOS": platform.mac_ver()[0]})
    if "first light" not in skip:
        _say(begin="first light")
        _say(done="first light", found=asdict(look(found, folder / "light", patience)))
        return  # the route is the parent's to choose: a crash in the next checks must not lose it
    route, equal = next(s for s in skip if s.startswith("route=")).removeprefix("route=").split(",")
    device = AneDevice(
        found, route, cache=CompileCache(folder / "cache", found.build), equal_surfaces=equal == "equal", verify_every=0, verifies=False, patience=patience
    )
    for check in all_checks():
        if check.name in skip or (quick and not check.quick):
            continue
        _say(begin=check.name)
        try:
            result = check.run(device)
        except (TorchaneError, AppleError) as error:
            result = {"ok": False, "error": str(error)}
        _say(done=check.name, found=result)
    device.close()


def _say(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def main(arguments: Sequence[str] | None = None, patience: float = 1.0) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--skip", action="append", default=[])
    asked = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    try:
        run_checks(framework.find(), asked.folder, asked.quick, asked.skip, patience)
    except TorchaneError as error:
        _say(missing=str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
