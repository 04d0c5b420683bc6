"""Which checkpoints are there, which can be read, which stay."""

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial
from pyarrow import fs
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, CheckpointConfig

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import CheckpointError, Endings
from tune_jobs.engine.store.checkpoints import KeepBestCheckpoints, Shelf, check_checkpoint

FAILED = {"reason": "KeyError", "message": "KeyError", "text": "Traceback"}
LOCAL = fs.LocalFileSystem()


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "checkpoint.ckpt", "w") as archive:
        archive.writestr("data", "x" * 1000)
    return folder / "checkpoint.ckpt"


def test_shelf_finds_what_is_recorded_and_there(tmp_path: Path) -> None:
    for number in (1, 2, 4):
        make_checkpoint(tmp_path / "trial_0000" / f"checkpoint_00000{number}")
    make_checkpoint(tmp_path / "trial_0001" / "checkpoint_000000")
    results = {
        2: {"checkpoint_dir_name": "checkpoint_000001"},
        3: {"checkpoint_dir_name": "checkpoint_000002"},
        4: {"checkpoint_dir_name": "checkpoint_000003"},  # it has been deleted
        5: {"checkpoint_dir_name": None},
    }
    shelf = Shelf(LOCAL, str(tmp_path))
    kept = shelf.of("trial_0000", results)
    assert [(epoch, Path(path).name) for epoch, path in kept.items()] == [
        (2, "checkpoint_000001"),
        (3, "checkpoint_000002"),
    ]
    assert shelf.of("trial_0007", results) == {}
    shelf.remove_others("trial_0000", kept.values())  # the fourth, which nobody has told
    assert len(list((tmp_path / "trial_0000").iterdir())) == 2
    assert len(list((tmp_path / "trial_0001").iterdir())) == 1


def test_shelf_leaves_alone_what_is_not_in_a_trials_own_folder(tmp_path: Path) -> None:
    name = {1: {"checkpoint_dir_name": "checkpoint_000000"}}
    for folder in ("trial_0000", "backup/trial_0000"):
        make_checkpoint(tmp_path / folder / "checkpoint_000000")
        make_checkpoint(tmp_path / folder / "checkpoint_mine")
    shelf = Shelf(LOCAL, str(tmp_path))
    assert shelf.of("trial_0000", name) == {1: str(tmp_path / "trial_0000/checkpoint_000000")}
    shelf.remove_others("trial_0000", shelf.of("trial_0000", name).values())
    assert len(list(tmp_path.rglob("checkpoint.ckpt"))) == 4


def test_checkpoint_of_a_plain_function_is_its_own_affair(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    check_checkpoint(LOCAL, str(tmp_path))
    (tmp_path / "checkpoint.ckpt").write_text("cut off")
    with pytest.raises(CheckpointError):
        check_checkpoint(LOCAL, str(tmp_path))


def test_checkpoint_that_is_whole_can_be_read(tmp_path: Path) -> None:
    file = make_checkpoint(tmp_path / "c")
    content = file.read_bytes()
    check_checkpoint(LOCAL, str(file.parent))
    assert file.read_bytes() == content


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_checkpoint_that_was_cut_off_is_told(kept: int, tmp_path: Path) -> None:
    file = make_checkpoint(tmp_path / "c")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"checkpoint.ckpt is damaged: it ends too early"):
        check_checkpoint(LOCAL, str(file.parent))


def test_checkpoint_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_checkpoint(LOCAL, str(tmp_path))


def make_trial(folder: Path, number: int, score: float) -> Any:
    path = folder / f"trial_{number:04d}" / "checkpoint_000000"
    make_checkpoint(path)
    manager = _CheckpointManager(CheckpointConfig(num_to_keep=1))
    manager.register_checkpoint(_TrainingResult(Checkpoint(str(path), LOCAL), {"score": score}))
    return SimpleNamespace(
        trial_id=str(number),
        storage=SimpleNamespace(trial_dir_name=f"trial_{number:04d}"),
        run_metadata=SimpleNamespace(checkpoint_manager=manager),
    )


def test_trials_that_had_finished_before_are_ranked_with_those_that_finish_now(
    tmp_path: Path,
) -> None:
    keeper = KeepBestCheckpoints(2, Goal("score", "max"), Endings())
    complete = create_trial(value=0.5)
    stopped = create_trial(state=TrialState.PRUNED, user_attrs={"reason": "asha"})
    failed = create_trial(state=TrialState.PRUNED, system_attrs={"tune_jobs:end": FAILED})
    keeper.recall(make_trial(tmp_path, 0, 0.9), failed)
    keeper.recall(make_trial(tmp_path, 1, 0.8), stopped)
    keeper.recall(make_trial(tmp_path, 2, 0.5), complete)
    keeper.on_trial_complete(0, [], make_trial(tmp_path, 3, 0.6))
    kept = sorted(path.parent.name for path in tmp_path.glob("*/checkpoint_*"))
    assert kept == ["trial_0002", "trial_0003"]
