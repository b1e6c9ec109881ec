"""`torchane` in a process whose Neural Engine is the stand-in: python train_on_standin.py LIBRARY FOLDER ARITHMETIC HANG_AT train ...

HANG_AT: the dispatch that never returns, at the first start only (FOLDER remembers); 0 for none. The last line on standard
error counts what the device did.
"""

import atexit
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from standin import HANGS, StandIn, noisy

from torchane.cli import run
from torchane.runtime import devices
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache


def main() -> int:
    library, folder, arithmetic, hang_at, *arguments = sys.argv[1:]
    root = Path(folder)
    machine = StandIn(Path(library), root / "daemon", noisy(4) if arithmetic == "noisy" else arithmetic)
    has_hung = root / "has-hung"
    if int(hang_at) and not has_hung.exists():
        has_hung.touch()
        machine.fail("evaluate", HANGS, after=int(hang_at))
    found = framework.opened([library])
    framework.find = lambda: found  # type: ignore[assignment]
    device = AneDevice(found, cache=CompileCache(root / "cache", found.build), dispatch_s=20.0 if int(hang_at) else 600.0)
    devices._open["ane"] = device
    atexit.register(lambda: print(json.dumps({**device.counts, "errors": len(machine.errors)}), file=sys.stderr))
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
