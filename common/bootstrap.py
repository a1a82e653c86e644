"""Prepares a farm and keeps it in order: `python -m common.bootstrap migrate | bootstrap | prune | scrub`.

The only command line in `common`. `huafang admin` starts it and compose runs it once. It needs no API. Prints JSON on
stdout; an error is one sentence on stderr and exit code 1, or 5 if there is an admin key already. A scrub prints a line
for each thing it finds and a last one with the numbers; its exit code is 6 where something is left to repair.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from psycopg.errors import UndefinedTable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import ArgumentError, ProgrammingError

from common import sentence
from common.accounts import audit
from common.accounts.audit import Action
from common.accounts.farm import Farm
from common.accounts.keys import Caller, create_key
from common.accounts.tenants import OPERATOR, ensure_tenant
from common.config import Settings
from common.db import connect, migrate, transaction
from common.enums import Scope, Via
from common.errors import Conflict, Error, Invalid, Unavailable, WrongFarm
from common.maintenance import pruning
from common.maintenance.scrub import YOUNG_S, Cursor, Options, Scrub, described, is_clean
from common.sentences import Sentence, printable
from common.storage import Storage

T = TypeVar("T")

LEFT_TO_REPAIR = 6  # an exit code
COUNT_TIMEOUT_S = 600  # of one statement that counts the rows of a large table


def main() -> None:
    parser = argparse.ArgumentParser("python -m common.bootstrap", description=__doc__)
    parser.add_argument("command", choices=("migrate", "bootstrap", "prune", "scrub"))
    parser.add_argument("--adopt", choices=("bucket", "pepper"), help="migrate: what becomes the farm's")
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for Postgres")
    parser.add_argument("--another", action="store_true", help="bootstrap: make a key even if there is one")
    parser.add_argument("--dry-run", action="store_true", help="prune: only count")
    parser.add_argument("--digests", action="store_true", help="scrub: read all bytes")
    parser.add_argument("--repair", action="store_true", help="scrub: delete orphans, mark what is gone")
    parser.add_argument("--rate", type=float, help="scrub: objects a second")
    parser.add_argument("--young", type=float, default=YOUNG_S / 3600, help="scrub: hours; younger orphans are left")
    parser.add_argument("--cursor", type=Path, help="scrub: a file that says how far it came")
    given = parser.parse_args()
    settings = Settings()
    done: dict[str, Any]
    try:
        with as_errors_of_ours():
            if given.command == "migrate":
                done = retry_until(given.wait, lambda: migrate_to_newest(settings, given.adopt))
            elif given.command == "bootstrap":
                done = retry_until(given.wait, lambda: bootstrap(settings, another=given.another))
            elif given.command == "prune":
                done = retry_until(given.wait, lambda: prune(settings, dry_run=given.dry_run))
            else:
                options = Options(given.digests, given.repair, given.rate, 3600 * given.young)
                sys.exit(0 if scrub(settings, options, given.cursor, given.wait) else LEFT_TO_REPAIR)
            print(json.dumps(done))
    except Error as error:
        print(f"huafang: {printable(error.message)}", file=sys.stderr)
        sys.exit(5 if isinstance(error, Conflict) else 1)


def migrate_to_newest(settings: Settings, adopt: str | None) -> dict[str, str]:
    """Migrate the tables, and write the farm's id where it is missing. Another farm's database is left alone.

    `adopt`: what becomes this farm's, whosever it was: "bucket" or "pepper".
    """
    if adopt == "pepper":
        pepper_of(settings)
    with farm_of(settings) as (_, farm):
        unknown = None if adopt else refuse_another_farm(farm)
        done = migrate(settings.database_url.get_secret_value())
        if adopt:
            (farm.adopt_bucket if adopt == "bucket" else farm.adopt_pepper)()
        notes = [note for note in (done.note, unknown and refuse_another_farm(farm)) if note]
    return {"revision": done.revision, **({"note": " ".join(notes)} if notes else {})}


def bootstrap(settings: Settings, *, another: bool) -> dict[str, str]:
    """Make the first tenant and its admin key. Raises Conflict if there is an admin key and `another` is false."""
    pepper = pepper_of(settings)
    with farm_of(settings) as (engine, farm):
        refuse_another_farm(farm)
        with transaction(engine) as connection:
            tenant = ensure_tenant(connection, OPERATOR)
            if not another and has_admin_key(connection):
                raise Conflict(sentence("admin_key_exists"))
            scopes = [Scope.ADMIN, Scope.OPERATOR]
            key = create_key(connection, tenant, "admin", scopes, pepper)
            itself = Caller(tenant, key.id, frozenset(), Via.SHELL)  # access to the database needs no key
            audit.record(connection, itself, Action.CREATE_KEY, key.id, name="admin", scopes=scopes)
    return {"tenant": OPERATOR, "id": str(key.id), "secret": key.secret}


def prune(settings: Settings, *, dry_run: bool) -> dict[str, int]:
    """Delete the rows that nothing needs any more, or only count them: how many, by table."""
    with farm_of(settings, statement_timeout_s=COUNT_TIMEOUT_S) as (engine, farm):
        refuse_another_farm(farm)
        if dry_run:
            with transaction(engine) as connection:
                return pruning.count(connection, settings)
        return {rule.table: prune_table(engine, rule, settings) for rule in pruning.RULES}


def prune_table(engine: Engine, rule: pruning.Rule, settings: Settings) -> int:
    deleted, rows = 0, pruning.STEP_ROWS
    while rows == pruning.STEP_ROWS:
        with transaction(engine) as connection:
            rows = pruning.step(connection, rule, settings)
        deleted += rows
    return deleted


def scrub(settings: Settings, options: Options, path: Path | None, wait_s: float) -> bool:
    """Compare rows with objects, and print what differs; whether nothing is left to repair.

    `path`: the cursor's file. It is written after each window, read where there is one, and deleted at the end.
    """
    cursor = Cursor.load(path) if path else Cursor()
    with farm_of(settings) as (engine, farm):
        retry_until(wait_s, farm.compare)
        storage = Storage(settings)
        farm.guard(engine, storage)
        for findings in Scrub(engine, storage, options, cursor).run():
            for finding in findings:
                print(json.dumps(described(finding)), flush=True)
            if path:
                cursor.save(path)
    print(json.dumps({"objects": cursor.objects, "rows": cursor.rows, **cursor.found, "repaired": cursor.repaired}))
    if path:
        path.unlink(missing_ok=True)
    return is_clean(cursor)


@contextmanager
def farm_of(settings: Settings, *, statement_timeout_s: float = 30) -> Iterator[tuple[Engine, Farm]]:
    engine = connect(settings, pool=1, statement_timeout_s=statement_timeout_s)
    try:
        yield engine, Farm(engine, Storage(settings, attempts=1), settings.key_pepper.get_secret_value())
    finally:
        engine.dispose()


def refuse_another_farm(farm: Farm) -> Sentence | None:
    """Raises WrongFarm. A note if that is not known yet."""
    try:
        farm.compare()
    except WrongFarm:
        raise
    except Unavailable as error:
        return sentence("farm_unknown", reason=error.message)
    return None


def pepper_of(settings: Settings) -> str:
    pepper = settings.key_pepper.get_secret_value()
    if not pepper:
        raise Invalid(sentence("pepper_missing"))
    return pepper


def has_admin_key(connection: Connection) -> bool:
    # Find out whether there is an admin key.
    statement = text("SELECT EXISTS (SELECT FROM api_keys WHERE 'admin' = ANY(scopes) AND revoked_at IS NULL)")
    return bool(connection.execute(statement).scalar_one())


def retry_until(seconds: float, do: Callable[[], T]) -> T:
    """Do it; while Postgres, or what else it needs, is down, try again for that long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return do()
        except WrongFarm:
            raise
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@contextmanager
def as_errors_of_ours() -> Iterator[None]:
    """Turn the failures that only the operator of a database can cause into errors of ours."""
    try:
        yield
    except (ArgumentError, ModuleNotFoundError) as error:  # no URL, or one of another kind of database
        raise Invalid(sentence("database_url_invalid")) from error
    except ProgrammingError as error:
        if isinstance(error.orig, UndefinedTable):
            raise Invalid(sentence("database_empty")) from error
        raise Invalid(sentence("database_refuses", reason=str(error.orig).splitlines()[0])) from error


if __name__ == "__main__":
    main()
