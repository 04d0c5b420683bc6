"""Define-by-run spaces, run to find out whether configs and foreign trials belong to them."""

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.space import convert_space
from tune_jobs.engine.store.drawing import draw, draw_often
from tune_jobs.engine.store.warm_start import check_configs, others_of, read_others

GOAL = Goal("score", "max")
LAYERS = [(32,), (64, 64)]


def space(trial: optuna.Trial) -> dict[str, Any]:
    trial.suggest_categorical("layers", LAYERS)
    if trial.suggest_categorical("opt", [{"name": "sgd"}, {"name": "adam"}])["name"] == "sgd":
        trial.suggest_float("sgd/momentum", 0, 1)
    return {"classes": 10}


SPACE = convert_space(space)


@pytest.mark.parametrize(
    ("config", "queued"),
    [
        ({"layers": (64, 64)}, {"layers": [64, 64]}),
        ({"opt": {"name": "adam"}}, {"opt": {"name": "adam"}}),
        ({"sgd": {"momentum": 0.5}}, {"sgd/momentum": 0.5}),
        ({"sgd/momentum": 0.5, "classes": 10}, {"sgd/momentum": 0.5}),
        ({"layers": (16,)}, r"has layers = \[16\], which is not in the space: Cat"),
        ({"sgd/momentum": 2}, "has sgd/momentum = 2, which is not in the space: Float"),
        ({"classes": 11}, "has 'classes'; the space has layers, opt, sgd/momentum"),
        ({"sgd": {"lr": 2}}, "has 'sgd/lr'; the space has layers, opt, sgd/momentum"),
    ],
)
def test_check_configs_of_function(config: dict[str, Any], queued: Any) -> None:
    if isinstance(queued, str):
        with pytest.raises(SettingsError, match=rf"^enqueue\[0\] {queued}"):
            check_configs([config], SPACE)
    else:
        assert json.loads(json.dumps(check_configs([config], SPACE))) == [queued]


def test_check_configs_varying_constant() -> None:
    """A best config may be given whole, though the function returns another number each time."""

    def numbered(trial: optuna.Trial) -> dict[str, Any]:
        x = trial.suggest_float("x", 0, 1)
        return {"out": f"run_{trial.number}.txt", "double": {"x": 2 * x}, "same": 1}

    known = convert_space(numbered)
    config = {"x": 0.5, "out": "run_99.txt", "double": {"x": 1.0}, "same": 1}
    assert check_configs([config], known) == [{"x": 0.5}]
    for wrong in ({"same": 2}, {"outs": 1}):
        with pytest.raises(SettingsError, match=r"; the space has x"):
            check_configs([{**config, **wrong}], known)


def test_draw_stops_at_value_outside() -> None:
    drawn = draw(space, {"layers": (16,)})
    assert (list(drawn.asked), drawn.held, drawn.is_whole) == (["layers"], {}, False)


@pytest.mark.parametrize("error", [ArithmeticError, SystemExit, optuna.TrialPruned])
def test_draw_often_function_raises(error: type[BaseException]) -> None:
    """What was asked before counts."""

    def raising(trial: optuna.Trial) -> None:
        if trial.suggest_float("x", 0, 1) > 0.1:
            raise error
        trial.suggest_float("y", 0, 1)

    assert list(draw_often(raising, {}).asked) == ["x", "y"]


def foreign_study(choices: list[Any]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    distributions: dict[str, Any] = {
        "layers": optuna.distributions.CategoricalDistribution(choices),
        "opt": optuna.distributions.CategoricalDistribution(['{"name": "adam"}']),
    }
    for number, layers in enumerate(choices):
        params = {"layers": layers, "opt": '{"name": "adam"}'}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=number)
        )
    return study


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_read_others_of_function(tmp_path: Path) -> None:
    """Trials agree whether they hold the values themselves or the labels of this project."""
    study = foreign_study([(32,), "[64, 64]", (16,)])
    packed = json.loads(json.dumps(read_others(study, GOAL, SPACE, str(tmp_path))))
    others = others_of(packed)
    assert [trial.value for trial in others] == [0, 1]
    assert [trial.params["layers"] for trial in others] == ["[32]", "[64, 64]"]


def test_read_others_function_raises(tmp_path: Path) -> None:
    """Trials whose values make the function raise do not agree."""

    def raising(trial: optuna.Trial) -> None:
        if trial.suggest_float("x", 0, 1) > 0.5:
            raise ArithmeticError

    study = optuna.create_study(direction="maximize")
    for x in (0.25, 0.75):
        study.enqueue_trial({"x": x})
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), math.sqrt(x))
    others = others_of(read_others(study, GOAL, convert_space(raising), str(tmp_path)))
    assert [trial.params for trial in others] == [{"x": 0.25}]
