"""Tune's own schedulers in a resumed sweep: they know what they knew before."""

import math
import random
from pathlib import Path

import pytest
from ray.tune.experiment import Trial
from stock_sweep import CONTINUE, MAKERS, STOP, StockSweep, make_asha, scored, state_of


def run_some(sweep: StockSweep, rng: random.Random, num_steps: int) -> None:
    """Report epochs of random trials, which end by themselves after 10 epochs."""
    for _ in range(num_steps):
        running = sorted(n for n, trial in sweep.trials.items() if trial.status == Trial.RUNNING)
        if not running:
            return
        name = rng.choice(running)
        epoch = max(sweep.record.trial(name).intermediate_values, default=0) + 1
        (sweep.finish if epoch == 10 else sweep.report)(name, epoch, round(rng.random(), 2))


@pytest.mark.parametrize(
    ("name", "seed"),
    [*(("asha", seed) for seed in range(3)), *(("median", seed) for seed in range(12))],
)
def test_stock_scheduler_resumed_state(name: str, seed: int, tmp_path: Path) -> None:
    """After a resume the scheduler knows what it knew, and a bare one knows nothing."""
    rng = random.Random(seed)
    sweep = StockSweep(tmp_path, MAKERS[name]())
    sweep.start(*[f"t{number}" for number in range(20)])
    run_some(sweep, rng, 60)
    kinds = {trial.user_attrs.get("reason") for trial in sweep.record.trials()}
    assert {"scheduler", None} <= kinds
    num_lines = len(sweep.record.file.read_bytes().splitlines())
    again = StockSweep(tmp_path, MAKERS[name]())
    assert state_of(again.stock) == state_of(sweep.stock)
    assert len(again.record.file.read_bytes().splitlines()) == num_lines  # nothing decided again
    bare = MAKERS[name](metric="score", mode="max")
    for trial in again.trials.values():
        bare.on_trial_add(None, trial)
    assert not any(state_of(bare).values())


@pytest.mark.parametrize("name", ["asha", "median"])
def test_stock_scheduler_resumed_decisions(name: str, tmp_path: Path) -> None:
    """A sweep that was killed decides as one that was not."""

    def run(folder: Path, is_killed: bool) -> dict[str, tuple[str, dict[int, float]]]:
        folder.mkdir()
        rng = random.Random(0)
        sweep = StockSweep(folder, MAKERS[name]())
        sweep.start(*[f"t{number}" for number in range(12)])
        for _ in range(4):
            run_some(sweep, rng, 12)
            if is_killed:
                sweep = StockSweep(folder, MAKERS[name]())
        run_some(sweep, rng, 120)
        return {
            trial.user_attrs["trial_id"]: (trial.user_attrs["reason"], trial.intermediate_values)
            for trial in sweep.record.trials()
        }

    assert run(tmp_path / "killed", True) == run(tmp_path / "whole", False)


@pytest.mark.parametrize("name", ["asha", "median"])
@pytest.mark.parametrize("ending", ["last epoch", "stop_at", "nan", "inf", "by itself", "failure"])
def test_stock_scheduler_resumed_after_ending(name: str, ending: str, tmp_path: Path) -> None:
    """What the scheduler knows of a trial that it did not stop is the same after a resume."""

    def make() -> StockSweep:
        return StockSweep(tmp_path, MAKERS[name](), max_epochs=4, stop_at=0.9)

    sweep = make()
    sweep.start("t", "other")
    sweep.report("other", 1, 0.1)
    for epoch in (1, 2, 3):
        assert sweep.report("t", epoch, 0.5) == CONTINUE
    if ending == "last epoch":
        assert sweep.report("t", 4, 0.5) == STOP
    elif ending == "by itself":
        sweep._complete("t", scored(3))
    elif ending == "failure":
        sweep.fail("t", tmp_path)
    else:
        score = {"stop_at": 0.95, "nan": math.nan, "inf": math.inf}[ending]
        assert sweep.report("t", 4, score) == STOP
    before = state_of(sweep.stock)
    assert state_of(make().stock) == before


def test_stock_scheduler_epoch_trained_again(tmp_path: Path) -> None:
    """A trial that resumes from an earlier epoch reports it again; its first score there counts."""
    sweep = StockSweep(tmp_path, make_asha())
    sweep.start("t")
    for epoch in (1, 2, 3, 4):
        assert sweep.report("t", epoch, epoch / 10) == CONTINUE
    again = StockSweep(tmp_path, make_asha())
    for epoch in (3, 4):
        assert again.report("t", epoch, 0.9) == CONTINUE
    assert state_of(again.stock) == {1: {"t": 0.1}, 3: {"t": 0.3}, 9: {}, 27: {}, 81: {}}
