"""Licences that say what a model must not be used for, and which tenants have accepted them. Knows nothing of HTTP.

A tenant accepts a version of a licence once, for all models under it, and nobody takes that back.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from common.catalog.catalog import Licence, Model
from common.db import transaction
from common.errors import LicenceNotAccepted

LicenceVersion = tuple[str, str]  # a licence's name and version


def accept(connection: Connection, tenant_id: UUID, key_id: UUID, licence: Licence) -> None:
    """Note that a tenant accepts a licence, and by which key. Again changes nothing."""
    who = {"tenant": tenant_id, "key": key_id}
    connection.execute(ACCEPT, who | {"licence": licence.name, "version": licence.version})


def accepted(connection: Connection, tenant_id: UUID) -> Mapping[LicenceVersion, datetime]:
    """What a tenant has accepted, and when."""
    rows = connection.execute(ACCEPTED, {"tenant": tenant_id})
    return {(row.licence, row.version): row.accepted_at for row in rows}


class Acceptances:
    """Sees that models are used by tenants only who have accepted their licences. Looks up what it has not seen yet."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._seen: dict[UUID, frozenset[LicenceVersion]] = {}

    def require(self, tenant_id: UUID, models: Iterable[Model]) -> None:
        """Raises LicenceNotAccepted. Asks nobody about models whose licences restrict nothing."""
        bound = {mark(model.licence): model for model in models if model.licence.restrictions}
        if bound.keys() <= self._seen.get(tenant_id, frozenset()):
            return
        with transaction(self._database) as connection:
            seen = self._seen[tenant_id] = frozenset(accepted(connection, tenant_id))
        if missing := [model for licence, model in bound.items() if licence not in seen]:
            raise LicenceNotAccepted(" ".join(map(terms, missing)))


def mark(licence: Licence) -> LicenceVersion:
    return licence.name, licence.version


def terms(model: Model) -> str:
    """What a licence forbids, where its text is, and how to accept it."""
    licence = model.licence
    return (
        f"{model.name} is under the licence {licence.name} ({licence.version}), which you have not accepted yet. "
        f"It must not be used {'; '.join(licence.restrictions)}. The full text: {licence.url} "
        f"To accept it, once: `huafang models accept {model.name}`, or POST /v1/models/{model.name}/licence."
    )


ACCEPT = text("""
    INSERT INTO licence_acceptances (tenant_id, licence, version, key_id) VALUES (:tenant, :licence, :version, :key)
    ON CONFLICT (tenant_id, licence, version) DO NOTHING
""")

ACCEPTED = text("SELECT licence, version, accepted_at FROM licence_acceptances WHERE tenant_id = :tenant")
