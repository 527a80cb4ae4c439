"""Where clients compute: the setting ``device``."""

import pytest
import torch

from flower_app.errors import SettingError
from flower_app.settings import Settings
from flower_app.training.devices import device_of


@pytest.mark.parametrize(
    ("choice", "present", "device"),
    [("cpu", True, "cpu"), ("auto", False, "cpu"), ("auto", True, "cuda"), ("cuda", True, "cuda")],
)
def test_a_device_is_taken_where_it_is(
    choice: str, present: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert device_of(Settings.from_config({"device": choice})) == device


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="no CUDA device here; give cpu, or auto"):
        device_of(Settings.from_config({"device": "cuda"}))
    with pytest.raises(SettingError, match="device = 'mps' is unknown; choose cpu or auto or cuda"):
        Settings.from_config({"device": "mps"})
