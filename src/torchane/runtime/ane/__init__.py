"""The Neural Engine as a device, under the contract of runtime/device.py.

    text, blobs ── source ──► tagged text, weight files ── cache ──► folder ── csrc/apple ──► compiled, loaded program
    surfaces ── device.run ──► csrc/apple ──► the engine ── verify ──► compared with the twin: at first, and now and then

    framework   which libraries, which routes, what machine        policies   what each error means and what is done about it
    source      unique text, weight files, the order of ports      cache      folders of programs on disk
    verify      the engine's numbers, compared with the twin's     watchdog   a dispatch that never returns
    trust       which dispatches are compared, and second chances of a program that is wrong
    first_light three small programs in a child process, before anything is trusted

What is tested here is tested with a stand-in for Apple's framework (tests/apple); no Mac has run it yet.
"""

from torchane.runtime.ane.device import AneBuffer, AneDevice, AneProgram

__all__ = ["AneBuffer", "AneDevice", "AneProgram"]
