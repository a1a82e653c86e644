"""Licences that restrict the use of a model, and the tenants that have accepted them. Knows nothing of HTTP.

A tenant accepts a version of a licence once, for all models under it. An acceptance cannot be withdrawn.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from common.accounts import sentence
from common.catalog.catalog import Licence, Model
from common.db import transaction
from common.errors import LicenceNotAccepted
from common.sentences import Sentence

LicenceVersion = tuple[str, str]  # a licence's name and version


def accept(connection: Connection, tenant_id: UUID, key_id: UUID, licence: Licence) -> None:
    """Record that a tenant accepts a licence, and by which key. A second time changes nothing."""
    acceptance = {"tenant": tenant_id, "key": key_id, "licence": licence.name, "version": licence.version}
    connection.execute(ACCEPT, acceptance)


def accepted(connection: Connection, tenant_id: UUID) -> Mapping[LicenceVersion, datetime]:
    """The licences that a tenant has accepted, and when."""
    rows = connection.execute(ACCEPTED, {"tenant": tenant_id})
    return {(row.licence, row.version): row.accepted_at for row in rows}


class Acceptances:
    """Refuses models whose licences a tenant has not accepted. Remembers the acceptances that it has read."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._seen: dict[UUID, frozenset[LicenceVersion]] = {}

    def require(self, tenant_id: UUID, models: Iterable[Model]) -> None:
        """Raises LicenceNotAccepted. Reads nothing for models whose licences need no acceptance."""
        bound = {version_of(model.licence): model for model in models if model.licence.must_be_accepted}
        if bound.keys() <= self._seen.get(tenant_id, frozenset()):
            return
        with transaction(self._database) as connection:
            seen = self._seen[tenant_id] = frozenset(accepted(connection, tenant_id))
        if missing := [model for licence, model in bound.items() if licence not in seen]:
            raise LicenceNotAccepted(sentence("licences_not_accepted", sentences=" ".join(map(terms, missing))))


def version_of(licence: Licence) -> LicenceVersion:
    return licence.name, licence.version


def terms(model: Model) -> Sentence:
    """What a licence forbids, where its text is, and how to accept it."""
    licence = model.licence
    return sentence(
        "licence_not_accepted",
        model=model.name,
        licence=licence.name,
        version=licence.version,
        conditions="; ".join(licence.conditions),
        url=licence.url,
    )


# Insert an acceptance.
ACCEPT = text("""
    INSERT INTO licence_acceptances (tenant_id, licence, version, key_id) VALUES (:tenant, :licence, :version, :key)
    ON CONFLICT (tenant_id, licence, version) DO NOTHING
""")

# Read what a tenant has accepted.
ACCEPTED = text("SELECT licence, version, accepted_at FROM licence_acceptances WHERE tenant_id = :tenant")
