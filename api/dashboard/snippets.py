"""A job's recipe as the commands that would submit it again, for whoever goes on in a shell.

A prompt is anybody's text, and pasting it must never run it: everything is quoted, nothing begins with a dash where an
option could, and what a terminal would not show (control characters, marks that turn the direction of text) is written
as an escape. The key is never in it.
"""

import json
import shlex
import unicodedata
from collections.abc import Mapping
from typing import Any

from api.schemas import Job
from common.recipes.recipe import seeds_from

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of Unicode that show nothing, or move what is shown
ESCAPES = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\t": r"\t", "\r": r"\r"}


def draft_of(job: Job) -> dict[str, Any]:
    """What to submit for the same pictures; `seed` and `count` where they say as much as `seeds`."""
    recipe = job.recipe.model_dump(mode="json", exclude={"count", "seeds", "mode"})
    seeds = job.recipe.seeds
    in_a_row = seeds == seeds_from(seeds[0], len(seeds))
    drawn_from = {"count": len(seeds), "seed": seeds[0]} if in_a_row else {"seeds": list(seeds)}
    given = {name: value for name, value in recipe.items() if value not in (None, [], ())}
    return {**given, **drawn_from, "tier": job.tier.value}


def curl(draft: Mapping[str, Any], base_url: str) -> str:
    body = "".join(one if is_shown(one) else json.dumps(one)[1:-1] for one in json.dumps(draft, ensure_ascii=False))
    return " \\\n  ".join(
        [
            f"curl -sS {quoted(f'{base_url}v1/jobs')}",
            '-H "Authorization: Bearer $HUAFANG_KEY"',
            "-H 'Content-Type: application/json'",
            f"-d {quoted(body)}",
        ]
    )


def command_line(draft: Mapping[str, Any], base_url: str) -> str:
    """One command; where the seeds are not in a row, one for each of them."""
    seeds = draft.get("seeds")
    if seeds is None:
        return generate(draft, base_url)
    rest = {name: value for name, value in draft.items() if name != "seeds"}
    return "\n".join(generate({**rest, "count": 1, "seed": seed}, base_url) for seed in seeds)


def generate(draft: Mapping[str, Any], base_url: str) -> str:
    options = {
        "url": base_url.rstrip("/"),
        "model": draft["model"],
        "negative": draft["negative_prompt"],
        "size": f"{draft['width']}x{draft['height']}",
        **{name: draft.get(name) for name in ("steps", "scheduler", "guidance", "count", "seed")},
        **{name: draft.get(name) for name in ("source", "mask", "strength")},
        "image-format": draft["format"],
        "tier": draft["tier"],
    }
    said = [f"--{name}={quoted(str(value))}" for name, value in options.items() if value is not None]
    said += ["--lora=" + quoted(f"{use['name']}:{use['weight']}") for use in draft.get("lora", ())]
    return " ".join(["huafang generate", *said, "--", quoted(draft["prompt"])])


def quoted(text: str) -> str:
    """One word of a shell, whatever is in it; `$'…'`, which bash, zsh and ksh know, where it must be escaped."""
    if all(map(is_shown, text)):
        return shlex.quote(text)
    return "$'" + "".join(map(escaped, text)) + "'"


def escaped(one: str) -> str:
    if one in ESCAPES:
        return ESCAPES[one]
    if is_shown(one):
        return one
    return f"\\u{ord(one):04x}" if ord(one) <= 0xFFFF else f"\\U{ord(one):08x}"


def is_shown(one: str) -> bool:
    return unicodedata.category(one) not in HIDDEN
