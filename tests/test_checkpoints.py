"""Checkpoints: which are there, which can be read, which are kept."""

import zipfile
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial
from pyarrow import fs
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, CheckpointConfig

from tune_jobs.engine.core.errors import CheckpointError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome
from tune_jobs.engine.execution.callbacks import KeepBestCheckpoints
from tune_jobs.engine.store.checkpoints import Shelf, check_checkpoint
from tune_jobs.engine.store.record import Record

LOCAL = fs.LocalFileSystem()


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "checkpoint.ckpt", "w") as archive:
        archive.writestr("data", "x" * 1000)
    return folder / "checkpoint.ckpt"


def test_shelf_finds_recorded_checkpoints(tmp_path: Path) -> None:
    for number in (1, 2, 4):
        make_checkpoint(tmp_path / "trial_0000" / f"checkpoint_00000{number}")
    make_checkpoint(tmp_path / "trial_0001" / "checkpoint_000000")
    results = {
        2: {"checkpoint_dir_name": "checkpoint_000001"},
        3: {"checkpoint_dir_name": "checkpoint_000002"},
        4: {"checkpoint_dir_name": "checkpoint_000003"},  # deleted
        5: {"checkpoint_dir_name": None},
    }
    shelf = Shelf(LOCAL, str(tmp_path))
    kept = shelf.of("trial_0000", results)
    assert [(epoch, Path(path).name) for epoch, path in kept.items()] == [
        (2, "checkpoint_000001"),
        (3, "checkpoint_000002"),
    ]
    assert shelf.of("trial_0007", results) == {}
    shelf.remove_others("trial_0000", kept.values())  # checkpoint_000004, which is not recorded
    assert len(list((tmp_path / "trial_0000").iterdir())) == 2
    assert len(list((tmp_path / "trial_0001").iterdir())) == 1


def test_shelf_ignores_foreign_folders(tmp_path: Path) -> None:
    name = {1: {"checkpoint_dir_name": "checkpoint_000000"}}
    for folder in ("trial_0000", "backup/trial_0000"):
        make_checkpoint(tmp_path / folder / "checkpoint_000000")
        make_checkpoint(tmp_path / folder / "checkpoint_mine")
    shelf = Shelf(LOCAL, str(tmp_path))
    assert shelf.of("trial_0000", name) == {1: str(tmp_path / "trial_0000/checkpoint_000000")}
    shelf.remove_others("trial_0000", shelf.of("trial_0000", name).values())
    assert len(list(tmp_path.rglob("checkpoint.ckpt"))) == 4


def test_check_checkpoint_of_plain_function(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    check_checkpoint(LOCAL, str(tmp_path))
    (tmp_path / "checkpoint.ckpt").write_text("cut off")
    with pytest.raises(CheckpointError):
        check_checkpoint(LOCAL, str(tmp_path))


def test_check_checkpoint_whole_file(tmp_path: Path) -> None:
    file = make_checkpoint(tmp_path / "c")
    content = file.read_bytes()
    check_checkpoint(LOCAL, str(file.parent))
    assert file.read_bytes() == content


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_check_checkpoint_cut_off(kept: int, tmp_path: Path) -> None:
    file = make_checkpoint(tmp_path / "c")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"checkpoint.ckpt is damaged: it ends too early"):
        check_checkpoint(LOCAL, str(file.parent))


def test_check_checkpoint_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_checkpoint(LOCAL, str(tmp_path))


def make_trial(folder: Path, number: int, score: float) -> Any:
    """A Tune trial with one checkpoint."""
    path = folder / f"trial_{number:04d}" / "checkpoint_000000"
    make_checkpoint(path)
    manager = _CheckpointManager(CheckpointConfig(num_to_keep=1))
    manager.register_checkpoint(_TrainingResult(Checkpoint(str(path), LOCAL), {"score": score}))
    return SimpleNamespace(
        trial_id=str(number),
        storage=SimpleNamespace(trial_dir_name=f"trial_{number:04d}"),
        run_metadata=SimpleNamespace(checkpoint_manager=manager),
    )


def test_keeper_ranks_earlier_trials_too(tmp_path: Path) -> None:
    """Trials that finished under an earlier driver are ranked with those that finish now.

    Complete trials come before stopped ones, and those before failed ones.
    """
    goal = Goal("score", "max")
    record = Record.create(tmp_path, "s", goal, Event())
    earlier = [Outcome("KeyError", Cause.TRIAL), Outcome.of(Kind.ASHA), Outcome.of(Kind.LAST_EPOCH)]
    scores = [0.9, 0.8, 0.5, 0.6]
    for number, score in enumerate(scores):
        record.start(str(number), create_trial(state=TrialState.RUNNING), {})
        record.report(str(number), score, {"score": score, "epoch": 1}, None)
    for number, outcome in enumerate(earlier):
        record.end(str(number), outcome, scores[number])
    trials = [make_trial(tmp_path, number, score) for number, score in enumerate(scores)]
    keeper = KeepBestCheckpoints(2, goal, record)
    record.end("3", Outcome.of(Kind.BY_ITSELF), scores[3])
    keeper.on_trial_complete(0, trials, trials[3])
    kept = sorted(path.parent.name for path in tmp_path.glob("*/checkpoint_*"))
    assert kept == ["trial_0002", "trial_0003"]
