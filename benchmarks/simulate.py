"""How many epochs a sweep takes to find a config of the top 1 %: in simulated time, side by side.

    python -m benchmarks.simulate --out simulated.json                  # ours and all peers
    python -m benchmarks.simulate --out nan.json --nan-share 0.25       # a quarter diverges
    python -m benchmarks.simulate --out regret.json --to-the-end        # what is still to be gained
    python -m benchmarks.simulate --out forest.json --model forest      # by another surrogate
    python -m benchmarks.simulate --part tuning --sides ours "ours, factor 4"  # to choose settings

Searchers and schedulers are real, training is looked up: in a model that is fitted to recorded
curves (`benchmarks/surrogate.py`). Settings were chosen on the first half of MNIST's configs and on
the digits, the table is made on the second half. Syne Tune takes part where it is installed. Runs
that are in `--out` are not made again.
"""

import json
import multiprocessing
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
import tyro

from benchmarks.record_curves import draw_config, read_curves, read_repeats, table_of
from benchmarks.simulated_oracle import ORACLES
from benchmarks.simulated_ours import OURS, OURS_SIDES
from benchmarks.simulated_peers import PEERS, has_syne_tune
from benchmarks.simulated_table import Row, Scale, make_table
from benchmarks.simulated_time import Limits, MakeSide, Run, Task, simulate
from benchmarks.simulated_tried import TRIED
from benchmarks.surrogate import Surrogate
from tune_jobs.engine.core.goal import Goal

GOALS = {"val_acc": Goal("val_acc", "max"), "val_loss": Goal("val_loss", "min")}
SIDES: dict[str, MakeSide] = {**OURS_SIDES, **PEERS, **ORACLES, **TRIED}
FIRST_INDEX = 2_000_000  # of the configs that are tried first; those of the space are below
NUM_RUNS_A_SAVE = 20


@dataclass(frozen=True)
class Args:
    """Compare searches in simulated time."""

    data: Literal["mnist", "digits"] = "mnist"
    """Whose recorded curves."""
    part: Literal["tuning", "test", "all"] = "test"
    """Which of the configs: settings are chosen on tuning, the first half."""
    metric: Literal["val_acc", "val_loss"] = "val_acc"
    """What is optimised."""
    model: Literal["forest", "gp"] = "gp"
    """What is fitted to the curves; gp: a Gaussian process, with noise."""
    noise: Literal["residuals", "repeats"] = "residuals"
    """Luck of a training: what the model leaves unexplained, which is nothing with a forest, or
    what MNIST's configs that were trained again have shown, whichever part they are of."""
    sides: tuple[str, ...] = (*OURS_SIDES, *PEERS)
    """Who is compared."""
    versus: str = OURS
    """The side that the others are compared with."""
    slots: tuple[int, ...] = (1, 4, 16, 64)
    """Trials side by side."""
    num_seeds: int = 30
    """Seeds."""
    first_seed: int = 0
    """The first of them."""
    target: float | None = None
    """Score to be reached; None: the one that the best 1 % of the space reach."""
    max_total_epochs: int = 3_000
    """Epochs of all trials together; a run that does not get there counts as so many."""
    to_the_end: bool = False
    """Go on after the target has been reached, for the regret."""
    checkpoints: tuple[int, ...] = (400, 1_500, 3_000)
    """Epochs in total after which the regret is shown, with `--to-the-end`."""
    nan_share: float = 0.0
    """Share of the configs that diverge in their first epoch."""
    num_draws: int = 20_000
    """Configs that stand for the space, of which the top 1 % is taken."""
    num_first: int = 10
    """Random configs that all sides try first at a seed."""
    speed_spread: float = 0.2
    """Standard deviation of the logarithm of a trial's speed."""
    recorded_lengths: bool = False
    """Let an epoch take as long as recorded, not 1."""
    out: Path | None = None
    """JSON file of all runs."""
    again: tuple[str, ...] = ()
    """Sides whose runs in `--out` are made again."""
    num_processes: int = 2
    """Simulations side by side."""


class Key(NamedTuple):
    """One simulated sweep among the others."""

    side: str
    slots: int
    seed: int


class Simulator:
    """Makes one run after the other.

    Args:
        args: The command line's.
        target: The score to be reached.
    """

    def __init__(self, args: Args, target: float) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._args = args
        self._goal = GOALS[args.metric]
        self._surrogate = make_surrogate(args)
        self._limits = Limits(
            target, args.max_total_epochs, args.to_the_end, args.speed_spread, args.recorded_lengths
        )

    def run(self, key: Key) -> Row:
        task = Task(
            goal=self._goal,
            max_epochs=self._surrogate.max_epochs,
            num_slots=key.slots,
            seed=key.seed,
            first_configs=draw_first(key.seed, self._args.num_first),
            expect=self._surrogate.expect_best,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each side has its own about NaN
            return Row(*key, simulate(SIDES[key.side](task), self._surrogate, task, self._limits))


class RunFile:
    """The runs in `--out`, which all have the same settings.

    Args:
        path: The file; None: nothing is kept.
        settings: What the runs depend on.

    Raises:
        SystemExit: The file is of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path = path
        self._settings = settings
        self.rows: dict[Key, Row] = {}
        if path is None or not path.exists():
            return
        content = json.loads(path.read_text())
        differing = [n for n, value in settings.items() if content["settings"].get(n) != value]
        if differing:
            raise SystemExit(
                f"{path} holds runs with another {', '.join(differing)}; give another --out."
            )
        for entry in content["runs"]:
            key = Key(entry.pop("side"), entry.pop("slots"), entry.pop("seed"))
            self.rows[key] = Row(*key, Run(**entry))

    def save(self) -> None:
        if self._path is None:
            return
        runs = [{**key._asdict(), **asdict(row.run)} for key, row in sorted(self.rows.items())]
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps({"settings": self._settings, "runs": runs}))
        unfinished.rename(self._path)


def make_surrogate(args: Args) -> Surrogate:
    """What is fitted to the part of the configs that was asked for."""
    configs, curves = read_curves(args.data)
    places = list(range(len(configs)))
    half = len(places) // 2
    part = {"tuning": places[:half], "test": places[half:], "all": places}[args.part]
    repeats = read_repeats(args.data, args.metric) if args.noise == "repeats" else {}
    return Surrogate(
        [configs[place] for place in part],
        {name: values[part] for name, values in curves.items()},
        GOALS[args.metric],
        list(repeats.values()),
        args.nan_share,
        args.model,
    )


def draw_first(seed: int, num_first: int) -> list[dict[str, Any]]:
    """The random configs that all sides try first at a seed."""
    first = FIRST_INDEX + 1_000 * seed
    return [draw_config(index) for index in range(first, first + num_first)]


def settings_of(args: Args, target: float, best: float) -> dict[str, Any]:
    """What runs depend on besides side, slots and seed, as JSON has it."""
    names = ["data", "part", "metric", "model", "noise", "nan_share", "num_draws", "num_first"]
    names += ["max_total_epochs", "to_the_end", "speed_spread", "recorded_lengths"]
    curves = zlib.crc32(table_of(args.data).read_bytes())
    chosen = {name: getattr(args, name) for name in names}
    return {**chosen, "curves": f"{curves:08x}", "target": target, "best": best}


def check(args: Args) -> Args:
    """Leave out who cannot take part.

    Raises:
        SystemExit: A side is unknown, or there is no such noise.
    """
    if args.noise == "repeats" and (args.data, args.model) != ("mnist", "gp"):
        raise SystemExit(
            f"noise of repeats is to be had of MNIST's configs with gp, not of {args.data} with "
            f"{args.model}; give --noise residuals."
        )
    for side in (*args.sides, *args.again, args.versus):
        if side not in SIDES:
            raise SystemExit(f"{side!r} is no side; there are: {', '.join(SIDES)}.")
    here = tuple(s for s in args.sides if has_syne_tune() or not s.startswith("Syne Tune"))
    if here != args.sides:
        print("Syne Tune is not installed (pip install syne-tune): its sides are left out.")
    return replace(args, sides=here)


def make_rows(args: Args, target: float, keys: list[Key]) -> Iterator[Row]:
    """Make runs, in any order."""
    if args.num_processes == 1:
        yield from map(Simulator(args, target).run, keys)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.num_processes, _begin_process, (args, target)) as pool:
        yield from pool.imap_unordered(_run_in_process, keys)


_simulators: list[Simulator] = []  # this process's


def _begin_process(args: Args, target: float) -> None:
    _simulators.append(Simulator(args, target))


def _run_in_process(key: Key) -> Row:
    return _simulators[0].run(key)


def main(args: Args) -> None:
    args, goal = check(args), GOALS[args.metric]
    top = make_surrogate(args).top(args.num_draws)
    if args.target is not None:
        top = top._replace(target=args.target)
    file = RunFile(args.out, settings_of(args, *top))
    seeds = range(args.first_seed, args.first_seed + args.num_seeds)
    keys = [Key(side, slots, seed) for slots in args.slots for seed in seeds for side in args.sides]
    missing = [key for key in keys if key not in file.rows or key.side in args.again]
    try:
        for count, row in enumerate(make_rows(args, top.target, missing), 1):
            file.rows[Key(row.side, row.slots, row.seed)] = row
            if count % NUM_RUNS_A_SAVE == 0:
                file.save()
                print(f"{count} of {len(missing)} runs", file=sys.stderr)
    finally:
        file.save()
    checkpoints = args.checkpoints if args.to_the_end else ()
    scale = Scale(goal, args.max_total_epochs, top.best, checkpoints)
    print(f"{args.data}, {args.part}, {args.metric}, {args.model}: ", end="")
    print(f"the top from {top.target:.4f} on, best {top.best:.4f}\n")
    print(make_table([file.rows[key] for key in keys], args.versus, scale))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
