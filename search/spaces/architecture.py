"""`Architecture`: one point of a search space, a value that round-trips through YAML."""

from dataclasses import dataclass

import yaml

from bnas.profiles.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class Decision:
    """One choice point. Decisions of one `group` share their choice (cells of one type); a chain has one per layer."""

    id: str
    candidates: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class Architecture:
    """`choices[d]` is the candidate taken at decision d of the space with id `space`."""

    space: str
    choices: tuple[str, ...]

    @property
    def name(self) -> str:
        return "-".join(self.choices)

    def to_dict(self) -> dict:
        return {"format": FORMAT, "space": self.space, "choices": list(self.choices)}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, content: object, source: str = "architecture") -> "Architecture":
        """Raises InputError, naming `source`, for anything but what `to_dict` writes."""
        if not isinstance(content, dict) or set(content) != {"format", "space", "choices"}:
            raise InputError(f"{source}: expected exactly the keys format, space and choices")
        if content["format"] != FORMAT:
            raise InputError(f"{source}: format {content['format']!r} is not supported; this version reads {FORMAT}")
        choices = content["choices"]
        texts = [content["space"], *(choices if isinstance(choices, list) else [None])]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{source}: space must be a text and choices a list of candidate names")
        return cls(content["space"], tuple(choices))

    @classmethod
    def from_yaml(cls, text: str, source: str = "architecture") -> "Architecture":
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
        return cls.from_dict(content, source)
