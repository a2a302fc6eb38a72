"""The ground floor: values that every other room speaks of. Needs numpy, pyyaml and pydantic only."""
