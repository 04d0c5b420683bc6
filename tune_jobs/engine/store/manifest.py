"""What a sweep was started with, in its folder: `sweep.json`, against which `--resume` is held."""

import ast
import dataclasses
import inspect
import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from optuna.distributions import distribution_to_json

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.settings import Settings, SettingsError
from tune_jobs.engine.search.study_search import SearchSpace
from tune_jobs.engine.store.folder import downloaded, is_url, write_whole

__all__ = ["MANIFEST_FILE", "Manifest", "recorded_settings"]

MANIFEST_FILE = "sweep.json"
FORMAT = 1
DEFINE_BY_RUN = "(define-by-run)"

# With another of these, the trials to come could not be held against those that are recorded.
FIXED_SETTINGS = ("seed", "max_epochs", "grace_epochs", "asha", "reduction_factor", "warm_start")
# Said anew each time, if at all.
MOMENTARY_SETTINGS = ("name", "storage_path", "address", "resume", "retry_failed", "enqueue")

AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True)
class Manifest:
    """What a sweep was started with.

    Attributes:
        metric: What is optimised.
        mode: "max" or "min".
        space: Name -> how it is searched, or the constant, as text.
        settings: The settings that hold from one driver to the next.
        data: The name of the data set; None where it has none, or has not been loaded.
        configs: To be tried first.
        others: Trials of another sweep to learn from.
    """

    metric: str
    mode: str
    space: dict[str, str]
    settings: dict[str, Any]
    data: str | None = None
    configs: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        settings: Settings,
        goal: Goal,
        space: SearchSpace,
        configs: list[dict[str, Any]],
        others: list[dict[str, Any]],
    ) -> "Manifest":
        """The manifest of a new sweep."""
        kept = {
            name: value
            for name, value in dataclasses.asdict(settings).items()
            if name not in MOMENTARY_SETTINGS and _is_plain(value)
        }
        described = _describe(space)
        return cls(goal.metric, goal.mode, described, kept, None, configs, others)

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Read the manifest of a sweep.

        Args:
            folder: The sweep's folder or URL.

        Raises:
            FileNotFoundError: There is none.
            SettingsError: It is damaged, or another version of the project wrote it.
        """
        if is_url(str(folder)):
            with downloaded(f"{folder}/{MANIFEST_FILE}") as local:
                return cls.read(local)
        file = Path(folder, MANIFEST_FILE)
        try:
            content = json.loads(file.read_text())
            version = content.pop("format")
            if version == FORMAT:
                if "reduction_factor" in content["settings"]:
                    # Of a sweep that began when there was one kind.
                    content["settings"].setdefault("asha", "stopping")
                return cls(**content)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{file} cannot be read ({error}); nothing has been changed. "
                "Put back a copy of it, or start a new sweep with another --name."
            ) from error
        raise SettingsError(
            f"{file} has format {version} and this version of tune_jobs goes on with format "
            f"{FORMAT}; nothing has been changed. Start a new sweep with another --name."
        )

    def write(self, folder: Path) -> None:
        """Write it into the sweep's folder, in one piece."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2)
        write_whole(folder / MANIFEST_FILE, f"{text}\n".encode())

    def check(self, now: "Manifest") -> None:
        """See that a sweep can be gone on with as it is asked for now.

        Raises:
            SettingsError: It cannot; the message names the differences.
        """
        if differences := self.differences(now):
            raise SettingsError(
                f"the sweep cannot be resumed as another one: {'; '.join(differences)}. "
                "Resume it as it was, or start a new one with another --name."
            )

    def differences(self, now: "Manifest") -> list[str]:
        """What keeps a sweep from being gone on with as it is asked for now, in words."""
        differences = []
        if (self.metric, self.mode) != (now.metric, now.mode):
            differences.append(
                f"it optimises {self.metric} ({self.mode}), not {now.metric} ({now.mode})"
            )
        for name in sorted(self.space.keys() | now.space.keys()):
            before, after = self.space.get(name, "absent"), now.space.get(name, "absent")
            if before != after and name == DEFINE_BY_RUN:
                differences.append("its space is another define-by-run function")
            elif before != after:
                differences.append(f"its space has {name} {before}, not {after}")
        for name in FIXED_SETTINGS:
            was, is_now = self.settings.get(name), now.settings.get(name)
            if was != is_now:
                differences.append(f"its {name} is {was}, not {is_now}")
        return differences


def recorded_settings(folder: str | Path, given: AnySettings) -> AnySettings:
    """The settings that a sweep was started with; those said anew each time are as given.

    Raises:
        SettingsError: As `Manifest.read`.
    """
    known = {field.name for field in dataclasses.fields(given) if field.init}
    recorded = Manifest.read(folder).settings
    return dataclasses.replace(given, **{k: v for k, v in recorded.items() if k in known})


def _describe(space: SearchSpace) -> dict[str, str]:
    constants = {name: f"constant {_plain(value)}" for name, value in space.constants.items()}
    if callable(space.searched):
        return {DEFINE_BY_RUN: _source(space.searched), **constants}
    searched = {name: _distribution(value) for name, value in space.searched.items()}
    return {**searched, **constants}


def _distribution(distribution: Any) -> str:
    described = json.loads(distribution_to_json(distribution))
    attributes = ", ".join(f"{k}={v}" for k, v in described["attributes"].items())
    return f"{described['name'].removesuffix('Distribution')}({attributes})"


def _source(function: Any) -> str:
    try:
        # without comments and layout
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, or a lambda within a line
        return str(getattr(function, "__qualname__", type(function).__qualname__))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> str:
    """As text that is the same in another process: an object's own may hold its address."""
    return json.dumps(value, default=lambda other: type(other).__qualname__)
