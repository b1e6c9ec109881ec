"""Doctor's child on the stand-in: python doctor_on_standin.py LIBRARY STORE ARITHMETIC FAULT FOLDER [--quick] [--skip NAME]...

FAULT, in children behind first light, or "light " and one for first light: "" or EVENT:WHAT:AFTER, WHAT a number or a damage's name, or "crash:AFTER" or "sleep:AFTER" (at a dispatch).
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from standin import StandIn

from torchane.runtime.ane import framework
from torchane.runtime.ane.doctor import child


def main() -> int:
    library, store, arithmetic, fault, *arguments = sys.argv[1:]
    machine = StandIn(Path(library), Path(store), arithmetic)
    is_light = not any(argument.startswith("--skip=route=") for argument in arguments)
    match fault.removeprefix("light ").split(":") if is_light == fault.startswith("light ") else []:
        case [event, what, after]:
            machine.fail(event, int(what) if what.isdigit() else what, after=int(after), times=1000)
        case [("crash" | "sleep") as end, after]:
            plain = machine._engine

            def engine(*given):
                if machine.events["evaluate"] >= int(after):
                    os.abort() if end == "crash" else time.sleep(3600)
                return plain(*given)

            machine._engine = engine
    found = framework.opened([library])
    framework.find = lambda: found
    return child.main(arguments, patience=0.0)


if __name__ == "__main__":
    sys.exit(main())
