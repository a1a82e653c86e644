"""What the safety checker said of images. For operators only: no tenant reads this. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from api.schemas import Safety

DAYS = 7  # that flagged images are counted of


@dataclass(frozen=True)
class Flagged:
    """Flagged images of a model; `concept` and the lowest score are None where the checker could not judge them."""

    model: str
    concept: int | None
    images: int
    lowest_score: float | None  # above 0; the nearer, the more of them may be flagged by mistake


def find_safety(connection: Connection, image_id: UUID) -> Safety | None:
    """The score of an image. None if nothing has judged it, or a worker of an earlier release has."""
    row = connection.execute(SAFETY, {"image": image_id}).one()
    return None if row.score is None else Safety(score=row.score, concept=row.concept)


def find_flagged(connection: Connection) -> Sequence[Flagged]:
    """The flagged images of the last days, of all tenants, by model and concept; the most first."""
    return [Flagged(**row._mapping) for row in connection.execute(FLAGGED, {"days": DAYS})]


# Read what was said of an image.
SAFETY = text("SELECT safety_score AS score, safety_concept AS concept FROM images WHERE id = :image")

# Count the flagged images of the last days.
FLAGGED = text("""
    SELECT lanes.model, images.safety_concept AS concept, count(*) AS images, min(images.safety_score) AS lowest_score
    FROM images JOIN lanes ON lanes.id = images.lane_id
    WHERE images.state = 'flagged' AND images.finished_at > now() - make_interval(days => :days)
    GROUP BY lanes.model, images.safety_concept ORDER BY images DESC, lanes.model, images.safety_concept
""")
