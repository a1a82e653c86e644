"""Safety checkers of the farm's own: the entries [checkers.NAME] of the catalogue, and who judges a model's images.

An entry is read as a model's is, of a family that no model can name: so its files are imported, shared and verified by
the same code. Knows no files.
"""

from collections.abc import Mapping
from typing import Any

from common.catalog import sentence
from common.catalog.families import Family, Guidance

FIELDS = ("source", "revision", "sha256", "licence", "licence_url", "description")
SUFFIX = "+safety-checker"  # of its name in the store; the name of an imported model has no +

FAMILY = Family(
    name="safety-checker",
    code="",
    pipelines=(),
    components={"safety_checker": ("StableDiffusionSafetyChecker",), "feature_extractor": ()},
    denoiser="",
    tokenizer="",
    token_limit=0,
    size_multiple=1,
    schedulers=("",),
    negative_prompt="no",
    guidance=Guidance("", 0.0),
    weighted=False,
    sharing="any",
    modes=(),
    defaults={"width": 0, "height": 0, "steps": 0, "scheduler": "", "guidance": 0.0, "token_limit": 0},
)


def entry_of(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a checker as that of a model. Raises TypeError if it has a key that no checker has."""
    if unknown := [key for key in entry if key not in FIELDS]:
        raise TypeError(sentence("checker_key_unknown", checker=name, key=unknown[0], keys=", ".join(FIELDS)))
    return {**entry, "family": FAMILY.name}


def check(name: str, safety_checker: object, family: Family) -> None:
    """Raises TypeError unless a model's entry says who judges its images, where its own files cannot."""
    if not isinstance(safety_checker, bool | str):
        raise TypeError(sentence("safety_checker_wrong", model=name, value=safety_checker))
    if safety_checker is True and "safety_checker" not in family.components:
        raise TypeError(sentence("safety_checker_undecided", model=name, family=family.name))
