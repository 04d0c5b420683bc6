"""What a sweep was started with: `sweep.json`, against which `--resume` is checked."""

import ast
import dataclasses
import inspect
import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, distribution_to_json
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.layout import MANIFEST_FILE
from tune_jobs.engine.core.parameters import Parameter
from tune_jobs.engine.core.readable import label, readable
from tune_jobs.engine.core.settings import EpochSettings, OnResume, Settings, on_resume
from tune_jobs.engine.core.space import SearchSpace
from tune_jobs.engine.store.folder import downloaded, is_url, without_password, write_whole

__all__ = ["FORMAT", "Manifest", "recorded_settings", "spell_distribution"]

FORMAT = 2
DEFINE_BY_RUN = "(define-by-run)"
OWN = "the engine's own"
UNNAMED = "study no-name-"

AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True)
class Manifest:
    """What a sweep was started with.

    Attributes:
        metric: What is optimized.
        mode: "max" or "min".
        space: Name -> how it is searched, or the constant, as text. Of a define-by-run space its
            source, which is for people to read.
        settings: The settings that hold from one driver to the next, as JSON.
        scheduler: The class of the scheduler that takes ASHA's place; None: none does.
        facts: What `load_data` recorded; None: the data was not loaded yet.
        configs: Configs to try first.
        others: Trials of another study to learn from.
        warm_start: The study that they are from, if `run_sweep` was given it; None: the settings
            have it, or there is none.
        constants: Name -> constants that JSON cannot hold, as text.
        format: Of the file. In format 1, facts were not the job's to choose.
    """

    metric: str
    mode: str
    space: dict[str, str]
    settings: dict[str, Any]
    scheduler: str | None = None
    facts: dict[str, Any] | None = None
    configs: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    warm_start: str | None = None
    constants: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def of(
        cls, settings: Settings, goal: Goal, space: SearchSpace, scheduler: str | None
    ) -> "Manifest":
        """The manifest of a new sweep.

        Raises:
            SettingsError: A setting's type cannot be recorded.
        """
        described, constants = _describe(space), _describe_objects(space)
        packed = _pack(settings)
        return cls(goal.metric, goal.mode, described, packed, scheduler, constants=constants)

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Read the manifest of a sweep.

        Args:
            folder: The sweep's folder or URL.

        Raises:
            FileNotFoundError: There is none.
            SettingsError: It is damaged, or was written by another version of the project.
        """
        if is_url(str(folder)):
            with downloaded(f"{folder}/{MANIFEST_FILE}") as local:
                return cls.read(local)
        file = Path(folder, MANIFEST_FILE)
        try:
            content = json.loads(file.read_text())
            version = content["format"]
            if version == 1:
                return cls(**_from_format_1(content))
            if version == FORMAT:
                return cls(**content)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(
                f"{file} cannot be read ({error}); nothing was changed. "
                "Restore a copy of it, or start a new sweep with another --name."
            ) from error
        raise SettingsError(
            f"{file} has format {version}, and this version of tune_jobs resumes formats 1 to "
            f"{FORMAT}; nothing was changed. Start a new sweep with another --name."
        )

    def write(self, folder: Path) -> None:
        """Write it into the sweep's folder, atomically."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        write_whole(folder / MANIFEST_FILE, f"{text}\n".encode())

    def keep_fixed(self, now: "Manifest", settings: Settings) -> "Manifest":
        """What is asked for now, with the recorded values of fixed settings, which a fact of the
        data may have settled since."""
        fixed = {f.name for f in dataclasses.fields(settings) if on_resume(f) == OnResume.FIXED}
        kept = {name: value for name, value in self.settings.items() if name in fixed}
        return dataclasses.replace(
            now, settings={**now.settings, **kept}, warm_start=self.warm_start
        )

    def check(self, now: "Manifest", settings: Settings) -> None:
        """Check that a sweep can be resumed as it is asked for now.

        Args:
            now: The manifest of what is asked for.
            settings: The settings that are asked for.

        Raises:
            SettingsError: It cannot; the message names the differences.
        """
        if differences := list(self._differences(now, settings)):
            raise SettingsError(
                f"the sweep cannot be resumed as another one: {'; '.join(differences)}. "
                "Resume it unchanged, or start a new sweep with another --name."
            )

    def _differences(self, now: "Manifest", settings: Settings) -> Iterator[str]:
        if (self.metric, self.mode) != (now.metric, now.mode):
            yield f"it optimizes {self.metric} ({self.mode}), not {now.metric} ({now.mode})"
        yield from self._differences_of_space(now)
        if self.scheduler != now.scheduler:
            yield f"its scheduler is {self.scheduler or OWN}, not {now.scheduler or OWN}"
        if not self._may_learn_from(now._other_study):
            yield f"its warm_start is {self._other_study}, not {now._other_study}"
        for known in dataclasses.fields(settings):
            if known.name == "warm_start":
                continue
            name, asked = known.name, now.settings.get(known.name)
            # A setting that the job did not have yet.
            was = self.settings.get(name, asked)
            settled = self._facts_of_settings().get(name, was)
            if on_resume(known) == OnResume.FIXED and asked not in (was, settled):
                yield f"its {name} is {settled}, not {asked}"

    @property
    def _other_study(self) -> str | None:
        """What it learns from, wherever that was given."""
        return self.warm_start or self.settings.get("warm_start") or None

    def _may_learn_from(self, given: str | None) -> bool:
        """Whether a resume may give this study; it is not read again. Optuna gives a study without
        a name another one in each process."""
        known = self._other_study
        are_unnamed = all((name or "").startswith(UNNAMED) for name in (known, given))
        return given is None or given == known or are_unnamed

    def _differences_of_space(self, now: "Manifest") -> Iterator[str]:
        """Of a define-by-run function, what it asks for is compared, by `check_asked`."""
        is_function, was_function = DEFINE_BY_RUN in now.space, DEFINE_BY_RUN in self.space
        if is_function != was_function:
            kinds = {True: "a define-by-run function", False: "a dict"}
            yield f"its space is {kinds[was_function]}, not {kinds[is_function]}"
        if is_function or was_function:
            return
        for name in sorted(self.space.keys() | now.space.keys()):
            before, after = self.space.get(name, "absent"), now.space.get(name, "absent")
            if before != after:
                yield f"its space has {name} {before}, not {after}"
        for name in sorted(self.constants.keys() & now.constants.keys()):
            before, after = self.constants[name], now.constants[name]
            if before != after:
                yield f"its space has {name} constant {before}, not constant {after}"

    def settle(self, settings: AnySettings) -> AnySettings:
        """The settings with the recorded facts, where they are left as open as before."""
        packed, adapters = _pack(settings), dict(_adapters(settings))
        open_still = {
            name: adapters[name].validate_python(fact)
            for name, fact in self._facts_of_settings().items()
            if name in adapters and packed[name] == self.settings.get(name)
        }
        return dataclasses.replace(settings, **open_still)

    def _facts_of_settings(self) -> dict[str, Any]:
        """The facts that may settle a setting of the job's own: the engine's settings are no
        matter of the data, even if one has the name of a fact."""
        engines = {known.name for known in dataclasses.fields(EpochSettings)}
        return {name: fact for name, fact in (self.facts or {}).items() if name not in engines}


def recorded_settings(folder: str | Path, given: AnySettings) -> AnySettings:
    """The settings that a sweep was started with; momentary ones have the values given.

    Raises:
        SettingsError: As `Manifest.read`.
    """
    recorded = Manifest.read(folder).settings
    adapters = dict(_adapters(given))
    values = {}
    for name in recorded.keys() & adapters.keys():
        try:
            values[name] = adapters[name].validate_python(recorded[name])
        except ValidationError as error:
            raise SettingsError(
                f"setting {name!r} of {type(given).__name__} was recorded as {recorded[name]!r}, "
                "which its type does not allow any more; restore its type, or start a new sweep "
                "with another --name."
            ) from error
    return dataclasses.replace(given, **values)


def _from_format_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content in today's format: in format 1, `data` was the name of the data set."""
    content = dict(content)
    data, settings = content.pop("data"), content["settings"]
    if "reduction_factor" in settings:
        settings.setdefault("asha", "stopping")  # there was one kind
    return {**content, "facts": {} if data is None else {"data": data}}


def _adapters(settings: Settings) -> Iterator[tuple[str, TypeAdapter[Any]]]:
    """What turns each recorded setting into JSON and back, by its annotation."""
    try:
        hints = typing.get_type_hints(type(settings), include_extras=True)
    except NameError:  # a class within a function, with types of that function
        hints = {}
    for known in dataclasses.fields(settings):
        if known.init and on_resume(known) != OnResume.MOMENTARY:
            try:
                yield known.name, _adapter(hints.get(known.name, Any))
            except PydanticUserError as error:
                raise _unrecordable(settings, known.name) from error


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=ConfigDict(ser_json_inf_nan="constants"))
    except PydanticUserError:  # a class that has its own config
        return TypeAdapter(hint)


def _pack(settings: Settings) -> dict[str, Any]:
    if settings.warm_start:  # it is never read again
        settings = dataclasses.replace(settings, warm_start=without_password(settings.warm_start))
    packed = {}
    for name, adapter in _adapters(settings):
        value = getattr(settings, name)
        try:
            packed[name] = json.loads(adapter.dump_json(value, warnings=False))
            survives = bool(adapter.validate_python(packed[name]) == value)
        except ValueError as error:  # pydantic's errors, and JSON's
            raise _unrecordable(settings, name) from error
        if not survives:
            raise _unrecordable(settings, name)
    return packed


def _unrecordable(settings: Settings, name: str) -> SettingsError:
    return SettingsError(
        f"setting {name!r} of {type(settings).__name__} cannot be recorded for --resume: "
        f"{getattr(settings, name)!r} would not come back as it is; annotate it with a type that "
        "JSON can hold, or make it momentary(default)."
    )


def _describe(space: SearchSpace) -> dict[str, str]:
    if space.define is not None:
        return {DEFINE_BY_RUN: _source(space.define)}
    constants = _flat(space.constants)
    searched = {name: _parameter(known) for name, known in space.parameters.items()}
    searched |= {name: f"grid of {searched[name]}" for name in space.grid}
    return {**searched, **{name: f"constant {_plain(value)}" for name, value in constants.items()}}


def _describe_objects(space: SearchSpace) -> dict[str, str]:
    """The constants of which `_plain` gives the type alone."""
    constants = _flat(space.constants)
    return {name: label(value) for name, value in constants.items() if not _is_json(value)}


def _flat(constants: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Constants by name, taken apart and without empty dicts: as they were always recorded."""
    flat: dict[str, Any] = {}
    for name, value in constants.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _parameter(parameter: Parameter) -> str:
    grid = getattr(parameter, "grid", None)
    described = spell_distribution(parameter.distribution)
    has_step = getattr(parameter.distribution, "step", None) not in (None, 1)
    return described if grid is None or has_step else f"{described} in steps of {grid.step}"


def spell_distribution(distribution: BaseDistribution) -> str:
    """A distribution as the manifest has it, and messages."""
    described = json.loads(distribution_to_json(distribution))
    attributes = ", ".join(f"{k}={v}" for k, v in described["attributes"].items())
    return f"{described['name'].removesuffix('Distribution')}({attributes})"


def _source(function: Any) -> str:
    try:
        # without comments and layout
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, or a lambda within a line
        return str(getattr(function, "__qualname__", type(function).__qualname__))


def _plain(value: Any) -> str:
    """As text that is the same in another process: an object's own may hold its address."""
    try:
        return json.dumps(value, default=lambda other: type(other).__qualname__)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, a list within itself
        return json.dumps(readable(value))
