"""What an engine does on this machine: probed in a child process, kept, and written as a report that a stranger can attach.

    examine ──► child: check, check, ... one line of JSON each ──► Report ──► record of this machine, file, table
                  a crash or a hang is a finding; the child is started again behind it

    checks      what is looked at: routes, ops, arithmetic, probes, times        child     runs them, one line each
    examine     starts the child, and again after a crash                        report    the findings as data, compared, told
"""
