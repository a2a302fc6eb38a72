"""`Profile`: what is known about the speed of one device, and from where. YAML, safe-loaded, schema-checked."""

import datetime
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from . import analytic, atomic
from .errors import InputError, unknown
from .workload import Workload

FORMAT = 1
SUFFIXES = (".yaml", ".yml")
Source = Literal["measured", "transferred", "published", "analytic"]  # most trustworthy first

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                raise unknown("key", str(key), cls.model_fields)
        return data


class Device(_Record):
    """Where the numbers hold. Whatever could not be read is null. `fingerprint` identifies a measured machine.

    binary_gmac_s: 10^9 binary MACs a second that the engine's instructions reach on the registers of one core, as it
    was while measuring: how fast the processor ran, where no clock can be read.
    """

    name: str
    processor: str | None = None
    arch: str | None = None
    cores: int | None = None
    memory: str | None = None
    os: str | None = None
    governor: str | None = None
    clock_mhz: NonNegative | None = None
    temperature_c: float | None = None
    binary_gmac_s: NonNegative | None = None
    python: str | None = None
    fingerprint: str | None = None


class EngineInfo(_Record):
    """What executed (or would execute) the units. `operators`: version of our operator library, null without one."""

    name: str
    runtime: str
    version: str | None = None
    operators: str | None = None

    @property
    def text(self) -> str:
        """For reading: native-avx512 (onnxruntime 1.31.1, operators 0.1.0)."""
        parts = [" ".join(filter(None, (self.runtime, self.version)))]
        if self.operators:
            parts.append(f"operators {self.operators}")
        return f"{self.name} ({', '.join(parts)})"


class Row(_Record):
    """One unit's time at batch 1: percentiles over `count` samples."""

    workload: str
    p10_ms: Positive
    p50_ms: Positive
    p90_ms: Positive
    count: Annotated[int, Field(ge=1)]
    source: Source = "measured"

    @field_validator("workload")
    @classmethod
    def _is_key(cls, key: str) -> str:
        return Workload.from_key(key).key

    @model_validator(mode="after")
    def _ordered(self) -> "Row":
        if not self.p10_ms <= self.p50_ms <= self.p90_ms:
            raise ValueError(f"percentiles must rise: p10 {self.p10_ms}, p50 {self.p50_ms}, p90 {self.p90_ms}")
        return self


class Rates(_Record):
    """Peak 10^12 operations per second (two per multiply-accumulate) and the width of a weight in memory."""

    tera_ops: Positive
    weight_bits: Positive


class ComputePath(_Record):
    """One way a roofline device could compute; `hypothetical` where no shipped runtime computes that way."""

    description: str
    hypothetical: bool
    binary_units: Rates
    float_units: Rates


class Roofline(_Record):
    """See `analytic.roofline_ms`. `path` names the entry of `paths` in use."""

    kind: Literal["roofline"]
    formula: str
    derate: Annotated[float, Field(gt=0, le=1)]
    bandwidth_gb_s: Positive
    launch_floor_us: NonNegative
    path: str
    paths: dict[str, ComputePath]

    @model_validator(mode="after")
    def _path_exists(self) -> "Roofline":
        if self.path not in self.paths:
            raise unknown("compute path", self.path, self.paths)
        return self

    @property
    def note(self) -> str:
        """What a reader of a prediction must know besides its source; empty if nothing."""
        return f"hypothetical path {self.path}" if self.paths[self.path].hypothetical else ""

    def ms(self, workload: Workload) -> float:
        path = self.paths[self.path]
        rates = path.binary_units if workload.bits == 1 else path.float_units
        return analytic.roofline_ms(
            workload,
            tera_ops=rates.tera_ops,
            weight_bits=rates.weight_bits,
            bandwidth_gb_s=self.bandwidth_gb_s,
            derate=self.derate,
            launch_floor_us=self.launch_floor_us,
        )


class MacLinear(_Record):
    """See `analytic.mac_linear_ms`."""

    kind: Literal["mac-linear"]
    formula: str
    binary_ms_per_gmac: NonNegative
    float_ms_per_gmac: NonNegative

    @property
    def note(self) -> str:
        return ""

    def ms(self, workload: Workload) -> float:
        return analytic.mac_linear_ms(
            workload, binary_ms_per_gmac=self.binary_ms_per_gmac, float_ms_per_gmac=self.float_ms_per_gmac
        )


class Calibration(_Record):
    """T = a_ms + b * sum(rows) + c_ms * units, fitted to `nets` whole networks; the rows exclude the fixed one.

    kfold_error: mean absolute relative error on held-out networks; within_10pct: share of them within 10 %.
    """

    a_ms: NonNegative
    b: NonNegative
    c_ms: NonNegative = 0.0
    nets: Annotated[int, Field(ge=2)]
    kfold_error: NonNegative
    within_10pct: Fraction


class Profile(_Record):
    """Rows, a cost model, or both (a row wins), for one device, engine, thread count and batch size.

    `error` is the relative error (a fraction) shown with every number, `error_source` says how it is known.
    """

    format: Literal[1] = 1
    name: Annotated[str, Field(min_length=1)]
    source: Source
    description: str
    created: datetime.date
    device: Device
    engine: EngineInfo
    threads: Annotated[int, Field(ge=1)]
    batch: Literal[1] = 1
    precision: str
    error: NonNegative
    error_source: str
    rows: tuple[Row, ...] = ()
    cost_model: Annotated[Roofline | MacLinear, Field(discriminator="kind")] | None = None
    calibration: Calibration | None = None
    sources: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Profile":
        if not self.rows and self.cost_model is None:
            raise ValueError("a profile needs rows or a cost_model")
        seen: set[str] = set()
        for row in self.rows:
            if row.workload in seen:
                raise ValueError(f"two rows for {row.workload}; keep one")
            seen.add(row.workload)
        if self.source == "measured" and not (self.engine.version and self.device.fingerprint):
            raise ValueError("a measured profile needs engine.version and device.fingerprint")
        return self

    @property
    def hash(self) -> str:
        """12 hex digits of the SHA-256 over the content; formatting and comments of the file do not count."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def list_profiles() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped() if file.name.endswith(".yaml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """The shipped profile `NAME`, its compute path `NAME:PATH`, or the profile in a .yaml file. Raises InputError."""
    text = str(name_or_path)
    name, _, path = text.partition(":")
    if isinstance(name_or_path, str) and name in list_profiles():
        shipped = resources.files("bnas.profiles") / "data" / f"{name}.yaml"
        profile = parse_profile(shipped.read_text(encoding="utf-8"), where=f"shipped profile {name}")
        return _on_path(profile, path) if path else profile
    file = Path(name_or_path)
    if text and (file.suffix in SUFFIXES or file.exists() or len(file.parts) > 1):
        return parse_profile(_read(file), where=text)
    raise unknown("profile", text, list_profiles())


def parse_profile(text: str, *, where: str) -> Profile:
    """The profile written in YAML `text`; `where` names it in errors. Raises InputError."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}, line {_line(error, text)}: not valid YAML; {_REMEDY}") from None
    except (RecursionError, ValueError):
        raise InputError(f"{where}: not valid YAML; {_REMEDY}") from None
    if not isinstance(data, dict):
        raise InputError(f"{where}: a profile is a mapping of keys, this is {_describe(data)}; {_REMEDY}")
    if data.get("format") != FORMAT or isinstance(data["format"], bool):
        raise InputError(
            f"{where}: profile format {_describe(data.get('format'))} is not supported, expected {FORMAT}; "
            "build it again with this version: bnas profiles build"
        )
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_first(error)}") from None


def to_yaml(profile: Profile) -> str:
    """The profile as YAML, one line per row; `parse_profile` reads back an equal profile."""
    data = profile.model_dump(mode="python")
    data["rows"] = [_Line(row) for row in data["rows"]]
    data["sources"] = list(data["sources"])
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def save_profile(profile: Profile, path: Path | str) -> None:
    """Write `path` in one step. Raises InputError if the place cannot be written."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"profile file {str(path)!r} must end in .yaml")
    if path.is_dir():
        raise InputError(f"{path} is a directory; name a .yaml file in it")
    try:
        atomic.write_text(path, to_yaml(profile))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"cannot write {path}: folder {path.parent} does not exist; create it first") from None
    except PermissionError:
        raise InputError(f"cannot write {path}: permission denied; choose another place") from None


_REMEDY = "repair it, or build it again: bnas profiles build --device local --space SPACE --out FILE"


def _shipped() -> list[Any]:
    return list((resources.files("bnas.profiles") / "data").iterdir())


def _on_path(profile: Profile, path: str) -> Profile:
    model = profile.cost_model
    if not isinstance(model, Roofline):
        raise InputError(f"profile {profile.name!r} has no compute paths, got {path!r}; use --profile {profile.name}")
    if path not in model.paths:
        raise unknown(f"compute path of {profile.name}", path, model.paths)
    chosen = model.model_copy(update={"path": path})
    return profile.model_copy(update={"name": f"{profile.name}:{path}", "cost_model": chosen})


def _read(path: Path) -> str:
    if path.is_dir():
        raise InputError(f"profile {str(path)!r} is a directory; name a .yaml file")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"profile file {str(path)!r} does not exist; see: bnas profiles list") from None
    except UnicodeDecodeError:
        raise InputError(f"profile file {str(path)!r} is not text; {_REMEDY}") from None
    except OSError as error:
        raise InputError(f"profile file {str(path)!r} cannot be read: {error.strerror}") from None


def _line(error: yaml.YAMLError, text: str) -> int:
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1


def _first(error: ValidationError) -> str:
    """The first thing wrong, as `place: what (got value)`, in one line."""
    detail = error.errors()[0]
    place = ".".join(str(part) for part in detail["loc"])
    cause = detail.get("ctx", {}).get("error")
    if cause is not None:
        text = str(cause)
    elif detail["type"] == "missing":
        text = "is missing"
    else:
        text = f"{detail['msg'].lower()}, got {_describe(detail['input'])}"
    return " ".join(f"{place}: {text}".removeprefix(": ").split())


def _describe(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Line(dict):
    """A mapping that is written on one line."""


class _Dumper(yaml.SafeDumper):
    pass


def _represent_line(dumper: _Dumper, row: _Line) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", row, flow_style=True)


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    style = None if text.isprintable() else '"'  # else PyYAML writes some line separators that it reads as spaces
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(_Line, _represent_line)
_Dumper.add_representer(str, _represent_text)
