"""Where every test of the command line runs it: a tiny model, and a folder with a document and a configuration."""

from __future__ import annotations

from pathlib import Path

import cli_runs
import pytest
import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"), num_hidden_layers=2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a document of 60 sentences, and a configuration without calibration and encoder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text(cli_runs.story())
    (tmp_path / "fast.toml").write_text('calibration = "none"\nencoder = "none"\nsegment_tokens = 128\n')
    return tmp_path
