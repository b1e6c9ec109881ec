"""Settings survive their file, and what makes no sense is refused."""

import json

import pytest
from small_run import SETTINGS

from torchane.errors import RunFolderError, UsageError
from torchane.train.settings import TrainSettings


def test_they_survive_json():
    assert TrainSettings.from_dict(json.loads(json.dumps(SETTINGS.to_dict())), source="run.json") == SETTINGS


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("batch_size", -1), ("grad_accum_steps", 0), ("lr", 0.0), ("warmup_steps", -1)]
)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(UsageError, match=f"{name} is {value}"):
        TrainSettings(**{**SETTINGS.to_dict(), name: value})


def test_the_settings_of_another_version_are_named():
    values = SETTINGS.to_dict()
    values["momentum"] = values.pop("beta1")
    with pytest.raises(
        RunFolderError, match=r"run.json: the settings have \['momentum'\] too many and \['beta1'\] missing"
    ):
        TrainSettings.from_dict(values, source="run.json")


@pytest.mark.parametrize("value", ["many", None, 0])
def test_settings_that_were_edited_wrongly_are_named(value):
    with pytest.raises(RunFolderError, match="run.json: "):
        TrainSettings.from_dict({**SETTINGS.to_dict(), "steps": value}, source="run.json")
