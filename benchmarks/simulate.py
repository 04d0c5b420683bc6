"""Compare how many epochs searches need to find a config of the top 1 %, in simulated time.

    python -m benchmarks.simulate --out simulated.json                # this project and all peers
    python -m benchmarks.simulate --out nan.json --nan-share 0.25     # a quarter of configs diverge
    python -m benchmarks.simulate --out regret.json --to-the-end      # also show the regret
    python -m benchmarks.simulate --out forest.json --model forest    # with the other surrogate
    python -m benchmarks.simulate --part tuning                       # on the half used for tuning

A side is a search with a scheduler: "ours" is promotion, this project's default. Searches and
schedulers are real, training is simulated by a model that is fitted to recorded learning curves
(`benchmarks/surrogate.py`). This project's settings were chosen on the first half of MNIST's
configs and on the digits; the table uses the second half. Syne Tune's sides run where it is
installed. Runs that `--out` already holds are not repeated.
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
from benchmarks.simulated_ours import OURS, OURS_SIDES
from benchmarks.simulated_peers import PEERS, has_syne_tune
from benchmarks.simulated_table import Row, Scale, make_table
from benchmarks.simulated_time import Limits, MakeSide, Run, Task, simulate
from benchmarks.surrogate import Surrogate
from tune_jobs.engine.core.goal import Goal

GOALS = {"val_acc": Goal("val_acc", "max"), "val_loss": Goal("val_loss", "min")}
SIDES: dict[str, MakeSide] = {**OURS_SIDES, **PEERS}
FIRST_INDEX = 2_000_000  # of the configs that are tried first; all others have lower indices
NUM_RUNS_A_SAVE = 20


@dataclass(frozen=True)
class Args:
    """Compare searches in simulated time."""

    data: Literal["mnist", "digits"] = "mnist"
    """Data set whose recorded curves are used."""
    part: Literal["tuning", "test", "all"] = "test"
    """Configs to use: the first half, on which settings were chosen, the second half, or all."""
    metric: Literal["val_acc", "val_loss"] = "val_acc"
    """Metric to optimize."""
    model: Literal["forest", "gp"] = "gp"
    """Model that is fitted to the curves; gp: a Gaussian process with noise."""
    noise: Literal["residuals", "repeats"] = "residuals"
    """Where the luck of a training is drawn from. residuals: what the model does not explain, which
    is nothing with a forest. repeats: MNIST's configs that were trained again, of either half."""
    sides: tuple[str, ...] = (*OURS_SIDES, *PEERS)
    """Sides to compare."""
    versus: str = OURS
    """Side that the others are compared with."""
    slots: tuple[int, ...] = (1, 4, 16, 64)
    """Trials in parallel; each number is a comparison of its own."""
    num_seeds: int = 30
    """Seeds of each comparison."""
    first_seed: int = 0
    """The first seed."""
    target: float | None = None
    """Score to reach; None: the score that the best 1 % of the space reach."""
    max_total_epochs: int = 3_000
    """Epochs of all trials together; a run that misses the target counts with this number."""
    to_the_end: bool = False
    """Continue after the target has been reached, and show the regret."""
    checkpoints: tuple[int, ...] = (400, 1_500, 3_000)
    """Epochs of all trials after which the regret is shown, with `--to-the-end`."""
    nan_share: float = 0.0
    """Share of the configs that diverge in their first epoch."""
    num_draws: int = 20_000
    """Configs drawn to find the score of the top 1 %."""
    num_first: int = 10
    """Random configs that all sides try first; they depend on the seed."""
    speed_spread: float = 0.2
    """Standard deviation of the logarithm of a trial's speed."""
    recorded_lengths: bool = False
    """Let an epoch take its recorded time instead of 1."""
    out: Path | None = None
    """JSON file that keeps all runs."""
    again: tuple[str, ...] = ()
    """Sides whose runs in `--out` are repeated."""
    num_processes: int = 2
    """Simulations in parallel."""


class Key(NamedTuple):
    """Identifies one simulated sweep."""

    side: str
    slots: int
    seed: int


class Simulator:
    """Runs simulated sweeps, one after the other.

    Args:
        args: The command line's.
        target: The score to reach.
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
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sides warn about NaN
            return Row(*key, simulate(SIDES[key.side](task), self._surrogate, task, self._limits))


class RunFile:
    """The runs in `--out`, all made with the same settings.

    Args:
        path: The file; None: runs are not kept.
        settings: Everything that a run depends on besides its key.

    Raises:
        SystemExit: The file holds runs made with other settings.
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
                f"{path} holds runs made with another {', '.join(differing)}; choose another --out."
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
    """Fit the surrogate to the chosen part of the configs."""
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
    """Draw the random configs that all sides try first with this seed."""
    first = FIRST_INDEX + 1_000 * seed
    return [draw_config(index) for index in range(first, first + num_first)]


def settings_of(args: Args, target: float, best: float) -> dict[str, Any]:
    """Everything that runs depend on besides side, slots and seed; serializable as JSON."""
    names = ["data", "part", "metric", "model", "noise", "nan_share", "num_draws", "num_first"]
    names += ["max_total_epochs", "to_the_end", "speed_spread", "recorded_lengths"]
    curves = zlib.crc32(table_of(args.data).read_bytes())
    chosen = {name: getattr(args, name) for name in names}
    return {**chosen, "curves": f"{curves:08x}", "target": target, "best": best}


def check(args: Args) -> Args:
    """Check the arguments, and skip sides that cannot run here.

    Raises:
        SystemExit: A side is unknown, or this noise was not recorded.
    """
    if args.noise == "repeats" and (args.data, args.model) != ("mnist", "gp"):
        raise SystemExit(
            f"--noise repeats needs --data mnist and --model gp, got {args.data} and {args.model}; "
            "use --noise residuals."
        )
    for side in (*args.sides, *args.again, args.versus):
        if side not in SIDES:
            raise SystemExit(f"unknown side {side!r}; choose from: {', '.join(SIDES)}.")
    here = tuple(s for s in args.sides if has_syne_tune() or not s.startswith("Syne Tune"))
    if here != args.sides:
        print("Skipping Syne Tune's sides: it is not installed (pip install syne-tune).")
    return replace(args, sides=here)


def make_rows(args: Args, target: float, keys: list[Key]) -> Iterator[Row]:
    """Make runs; they are yielded in any order."""
    if args.num_processes == 1:
        yield from map(Simulator(args, target).run, keys)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.num_processes, _begin_process, (args, target)) as pool:
        yield from pool.imap_unordered(_run_in_process, keys)


_simulators: list[Simulator] = []  # of this process


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
    print(f"target {top.target:.4f}, best {top.best:.4f}\n")
    print(make_table([file.rows[key] for key in keys], args.versus, scale))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
