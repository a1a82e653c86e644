"""Shell commands that submit a job's recipe again.

A prompt may be hostile, and pasting a command must never run it: every value is quoted, no positional value can pass
for an option, and characters that a terminal does not show (controls, marks of text direction) are escaped. The API key
is never part of a command.
"""

import json
import shlex
import unicodedata
from collections.abc import Mapping
from typing import Any

from api.schemas import Job
from common.recipes.recipe import seeds_from

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories that are invisible or move text
ESCAPES = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\t": r"\t", "\r": r"\r"}


def draft_of(job: Job) -> dict[str, Any]:
    """The request body that submits the same recipe; `seed` and `count` instead of consecutive `seeds`."""
    recipe = job.recipe.model_dump(mode="json", exclude={"count", "seeds", "mode"})
    if style := job.recipe.style:
        written = {"prompt": job.recipe.written_prompt, "negative_prompt": job.recipe.written_negative_prompt}
        recipe |= {**written, "style": style.name}
    seeds = job.recipe.seeds
    are_consecutive = seeds == seeds_from(seeds[0], len(seeds))
    seed_fields = {"count": len(seeds), "seed": seeds[0]} if are_consecutive else {"seeds": list(seeds)}
    given = {name: value for name, value in recipe.items() if value not in (None, [], ())}
    return {**given, **seed_fields, "tier": job.tier.value}


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
    """One command; for seeds that are not consecutive, one for each seed."""
    seeds = draft.get("seeds")
    if seeds is None:
        return _generate(draft, base_url)
    rest = {name: value for name, value in draft.items() if name != "seeds"}
    return "\n".join(_generate({**rest, "count": 1, "seed": seed}, base_url) for seed in seeds)


def _generate(draft: Mapping[str, Any], base_url: str) -> str:
    options = {
        "url": base_url.rstrip("/"),
        "model": draft["model"],
        "negative": draft["negative_prompt"],
        "size": f"{draft['width']}x{draft['height']}",
        **{name: draft.get(name) for name in ("steps", "scheduler", "guidance", "count", "seed")},
        **{name: draft.get(name) for name in ("source", "mask", "strength", "style")},
        "image-format": draft["format"],
        "tier": draft["tier"],
    }
    arguments = [f"--{name}={quoted(str(value))}" for name, value in options.items() if value is not None]
    arguments += ["--lora=" + quoted(f"{use['name']}:{use['weight']}") for use in draft.get("lora", ())]
    return " ".join(["huafang generate", *arguments, "--", quoted(draft["prompt"])])


def quoted(text: str) -> str:
    """The text as one shell word; as `$'…'`, which bash, zsh and ksh understand, where characters are escaped."""
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
