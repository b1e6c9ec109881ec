"""`torchane train --audit` and --arithmetic: what they say and leave in the run folder."""

import json
from pathlib import Path


def test_an_audit_is_said_and_kept_and_the_arithmetic_is_remembered(torchane_command, small):
    done = torchane_command(*small, "--audit", "--arithmetic", "engine")
    assert done.code == 0, done.err
    assert "products dropped" in done.err and "in the engine's arithmetic" in done.err
    data = json.loads(Path("run/audit.json").read_text())
    assert {p["name"] for p in data["parameters"]} >= {"model.embed_tokens.weight"}
    assert Path("run/audit.svg").read_text().startswith("<svg")
    assert json.loads(Path("run/run.json").read_text())["arithmetic"] == "engine"
