"""The language between the text encoder and the UNet: a vector for every attribute, whatever the wording.

Token number i of the text encoder's output carries attribute i mod 7. So the UNet can be taught from scenes and the
text encoder from sentences, each without the other; and a wording that is understood is drawn like any other.
"""

import torch

from training.networks import TOKENS, WIDTH
from training.world import ATTRIBUTES, BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, VALUES, Scene

KIND_WIDTH = 32  # which attribute it is; the rest of the vector says its value
UNSAID, NOTHING = "unsaid", "nothing"  # a sentence that leaves it open; no sentence at all
OPTIONS = {attribute: (*VALUES[attribute], UNSAID, NOTHING) for attribute in ATTRIBUTES}
AT = [i % len(ATTRIBUTES) for i in range(TOKENS)]  # the attribute of every token


def labels(scene: Scene) -> list[int]:
    """The place of each attribute's value among its options."""
    said = {attribute: getattr(scene, attribute) or UNSAID for attribute in ATTRIBUTES}
    if said["place"] == "centre":
        said["place"] = UNSAID  # where everything is
    return [OPTIONS[attribute].index(said[attribute]) for attribute in ATTRIBUTES]


def no_labels() -> list[int]:
    return [OPTIONS[attribute].index(NOTHING) for attribute in ATTRIBUTES]


def tables() -> list[torch.Tensor]:
    """Of each attribute a vector per option: of ±1, half and half, as a layer norm leaves them."""
    rng = torch.Generator().manual_seed(96)

    def vector(width: int) -> torch.Tensor:
        return torch.where(torch.randperm(width, generator=rng) < width // 2, 1.0, -1.0)

    names = dict.fromkeys((*COLOURS, *SHAPES, *BACKGROUNDS, *SIZES, *PLACES, UNSAID, NOTHING))
    value = {name: vector(WIDTH - KIND_WIDTH) for name in names}
    kind = [vector(KIND_WIDTH) for _ in ATTRIBUTES]
    return [
        torch.stack([torch.cat([kind[place], value[option]]) for option in OPTIONS[attribute]])
        for place, attribute in enumerate(ATTRIBUTES)
    ]


def codes(chosen: torch.Tensor, vectors: list[torch.Tensor]) -> torch.Tensor:
    """What the text encoder should say of these labels (batch × attributes): batch × tokens × width."""
    each = torch.stack([vectors[place][chosen[:, place]] for place in range(len(ATTRIBUTES))], 1)
    return each[:, AT]
