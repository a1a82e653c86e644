"""Licences with use restrictions, and which tenants have accepted them. Knows nothing of HTTP.

A tenant accepts a version of a licence once, for all models under it, for ever.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from common.accounts.sentences import sentence
from common.catalog.catalog import Licence, Model
from common.db import transaction
from common.errors import LicenceNotAccepted
from common.sentences import Sentence

LicenceVersion = tuple[str, str]  # a licence's name and version


def accept(connection: Connection, tenant_id: UUID, key_id: UUID, licence: Licence) -> None:
    """Record that a tenant accepts a licence, and with which key. Repeating it changes nothing."""
    who = {"tenant": tenant_id, "key": key_id}
    connection.execute(ACCEPT, who | {"licence": licence.name, "version": licence.version})


def accepted(connection: Connection, tenant_id: UUID) -> Mapping[LicenceVersion, datetime]:
    """When a tenant has accepted which licences."""
    rows = connection.execute(ACCEPTED, {"tenant": tenant_id})
    return {(row.licence, row.version): row.accepted_at for row in rows}


class Acceptances:
    """Refuses models whose licences a tenant has not accepted. Remembers acceptances, so that most checks do no I/O."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._seen: dict[UUID, frozenset[LicenceVersion]] = {}

    def require(self, tenant_id: UUID, models: Iterable[Model]) -> None:
        """Raises LicenceNotAccepted. A licence without restrictions needs no acceptance."""
        bound = {version_of(model.licence): model for model in models if model.licence.restrictions}
        if bound.keys() <= self._seen.get(tenant_id, frozenset()):
            return
        with transaction(self._database) as connection:
            seen = self._seen[tenant_id] = frozenset(accepted(connection, tenant_id))
        if missing := [model for licence, model in bound.items() if licence not in seen]:
            raise LicenceNotAccepted(sentence("licences_not_accepted", licences=" ".join(map(terms, missing))))


def version_of(licence: Licence) -> LicenceVersion:
    return licence.name, licence.version


def terms(model: Model) -> Sentence:
    """What the licence of a model forbids, where its text is, and how to accept it."""
    return sentence(
        "licence_not_accepted",
        model=model.name,
        licence=model.licence.name,
        version=model.licence.version,
        restrictions="; ".join(model.licence.restrictions),
        url=model.licence.url,
    )


# Inserts an acceptance, unless there is one.
ACCEPT = text("""
    INSERT INTO licence_acceptances (tenant_id, licence, version, key_id) VALUES (:tenant, :licence, :version, :key)
    ON CONFLICT (tenant_id, licence, version) DO NOTHING
""")

# Reads the acceptances of a tenant.
ACCEPTED = text("SELECT licence, version, accepted_at FROM licence_acceptances WHERE tenant_id = :tenant")
