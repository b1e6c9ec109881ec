"""Makes a Linux machine one with an engine, for every Python process that starts with this folder on its path:

    PYTHONPATH=tests/apple/mac STANDIN="LIBRARY FOLDER ARITHMETIC [EVENT:WHAT:AFTER:TIMES]..." torchane doctor --quick

The stand-in is opened where torchane looks for Apple's libraries; all else, child processes and records included, is torchane's own.
FOLDER is the daemon's. A fault strikes in each process anew; WHAT is a number of standin.py or the name of a damage.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path

FRAMEWORK = "torchane.runtime.ane.framework"
_machines = []


def _find():
    """In place of framework.find."""
    framework = sys.modules[FRAMEWORK]
    library, folder, arithmetic, *faults = os.environ["STANDIN"].split()
    if not _machines:
        sys.path.append(str(Path(__file__).parents[1]))
        from standin import StandIn, noisy

        machine = StandIn(Path(library), Path(folder), noisy(4) if arithmetic == "noisy" else arithmetic)
        for fault in faults:
            event, what, after, times = fault.split(":")
            machine.fail(event, int(what) if what.isdigit() else what, after=int(after), times=int(times))
        _machines.append(machine)
    return framework.opened([library])


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        module.find = _find


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != FRAMEWORK:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = _Loader(name, spec.origin)
        return spec


if "STANDIN" in os.environ:
    sys.meta_path.insert(0, _Finder())
