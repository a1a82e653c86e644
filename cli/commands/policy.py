"""`huafang policy`: try the operator's rules on prompts, as the farm would judge them. Needs no farm."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from cli import sentence
from cli.errors import ERROR, PARTLY, USAGE, Failure
from cli.shell import Group, Shell
from cli.terminal import Columns, Row
from common.errors import Invalid
from common.policy.policy import Policy, load
from common.prompt_files.columns import Columns as PromptColumns
from common.prompt_files.lines import Gap, Line, lines
from common.prompt_files.sheets import csv_records, read_csv_header

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}  # any other: a prompt per line
SHOWN = 60  # characters of a prompt, in a table

ROW: Columns = {
    "line": lambda found: found["line"],
    "rule": lambda found: found["rule"],
    "field": lambda found: found["field"],
    "prompt": lambda found: found["prompt"][:SHOWN],
}


@click.group(cls=Group)
def policy() -> None:
    """Rules of the operator that refuse prompts (HUAFANG_POLICY)."""


@policy.command("test")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--policy",
    "rules",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of rules.  [default: HUAFANG_POLICY]",
)
@click.pass_obj
def try_out(shell: Shell, file: BinaryIO, rules: Path | None) -> None:
    """List the prompts of FILE that the policy refuses, each with the rule. FILE has a prompt per line, or is .jsonl or
    .csv with the columns prompt and negative_prompt; - is stdin.

    Exit codes: 0 none is refused, 6 some are, 1 all are.
    """
    chosen = rules or shell.settings.policy
    if chosen is None:
        raise Failure(sentence("no_policy"), USAGE)
    judge = load(chosen)
    total, refused = 0, list[Row]()
    for line in read_lines(file):
        total += 1
        if found := refusal_of(line, judge):
            refused.append(found)
    shell.print_rows(refused, ROW, "line")
    shell.print_message(sentence("policy_tested", refused=len(refused), total=total, version=judge.version))
    if refused:
        raise SystemExit(ERROR if len(refused) == total else PARTLY)


def read_lines(file: BinaryIO) -> Iterator[Line]:
    data = file.read()
    form = FORMATS.get(Path(getattr(file, "name", "")).suffix.lower(), "txt")
    found: Iterator[Line | Gap]
    if form in ("csv", "tsv"):
        header = read_csv_header([data], "utf-8-sig", PromptColumns(keep=()), form)
        found = csv_records([data[header.end :]], header, header.end, header.number)
    else:
        found = lines([data], form)
    return (line for line in found if isinstance(line, Line))


def refusal_of(line: Line, judge: Policy) -> Row | None:
    """The rule that refuses a line, and in which field. Raises Failure for a line that cannot be read."""
    try:
        fields, _ = PromptColumns(keep=()).read(line.cells())
    except Invalid as error:
        raise Failure(sentence("line_unreadable", line=line.number, reason=error.message)) from None
    prompt = fields.get("prompt")
    for name in ("prompt", "negative_prompt"):
        text = fields.get(name)
        if isinstance(text, str) and (rule := judge.refusing_rule(name, text)):
            return {"line": line.number, "rule": rule, "field": name, "prompt": str(prompt)}
    return None
