"""The implicit label of a picture: seven elements (annex E of GB 45438-2025), and the XMP packet that carries them.

`packet` writes one, `label_problems` judges what was found in a file, whoever wrote it. Pure values; knows no format.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import escape

from common.labels import sentence

LabelMode = Literal["off", "implicit", "visible"]

GENERATED, POSSIBLY, SUSPECTED = "1", "2", "3"  # the values of `Label`
REQUIRED = ("Label", "ContentProducer", "ProduceID", "ContentPropagator", "PropagateID")
ELEMENTS = (
    "Label",
    "ContentProducer",
    "ProduceID",
    "ReservedCode1",
    "ContentPropagator",
    "PropagateID",
    "ReservedCode2",
)
NAMESPACE = "http://www.tc260.org.cn/ns/AIGC/1.0/"
LISTED = re.compile(r"[!#-\[\]-~]*")  # the characters that annex E lists for a value, but for the escaped quote
MAX_PRODUCER = 200

# What IPTC's vocabulary calls a picture of each mode: for readers outside China.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SOURCE_TYPES = {
    "text2image": "trainedAlgorithmicMedia",
    "image2image": "compositeWithTrainedAlgorithmicMedia",
    "inpaint": "compositeWithTrainedAlgorithmicMedia",
}
PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:TC260="{NAMESPACE}"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<TC260:AIGC>{elements}</TC260:AIGC>"
    "<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


class FoundLabel(NamedTuple):
    """`place`: where in the file, for people. `elements`: by name; None where the text is no JSON object."""

    place: str
    elements: Mapping[str, Any] | None


def check_producer(producer: str) -> str:
    """The code of a provider, as a label has it. Raises ValueError."""
    if not 0 < len(producer) <= MAX_PRODUCER or not LISTED.fullmatch(producer):
        raise ValueError(sentence("producer_invalid", limit=MAX_PRODUCER))
    return producer


def packet(producer: str, content_id: str, mode: str) -> bytes:
    """The XMP packet of a generated picture. Equal arguments give equal bytes.

    Who writes a label first names itself as propagator too (annex E, note 1).
    """
    values = (GENERATED, producer, content_id, "", producer, content_id, "")
    elements = json.dumps(dict(zip(ELEMENTS, values, strict=True)), separators=(",", ":"))
    return PACKET.format(elements=escape(elements), source=SOURCE_TYPE + SOURCE_TYPES[mode]).encode()


def label_problems(labels: Sequence[FoundLabel]) -> list[str]:
    """What is wrong with the labels of a file, a sentence each."""
    found: list[str] = [sentence("several_labels", count=len(labels))] if len(labels) > 1 else []
    for place, elements in labels:
        found += [sentence("no_json", place=place)] if elements is None else _element_problems(elements)
    return list(dict.fromkeys(found))


def _element_problems(elements: Mapping[str, Any]) -> list[str]:
    found: list[str] = [*(sentence("element_missing", element=name) for name in ELEMENTS if name not in elements)]
    for name in ELEMENTS:
        value = elements.get(name, "")
        if not isinstance(value, str):
            found.append(sentence("element_invalid", element=name))
        elif not LISTED.fullmatch(value.replace('"', "")):
            found.append(sentence("element_unlisted", element=name))
        elif name in REQUIRED and not value and name in elements:
            found.append(sentence("element_empty", element=name))
    label = elements.get("Label")
    if isinstance(label, str) and label and label not in (GENERATED, POSSIBLY, SUSPECTED):
        found.append(sentence("label_unknown", value=label))
    return found
