"""The codes between the text encoder and the UNet: one vector for each attribute of a scene, whatever the wording.

Token i of the text encoder's output holds attribute i mod 8. So the UNet is trained on scenes and the text encoder on
sentences, independently.
"""

import torch

from training.networks import TOKENS, WIDTH
from training.world import ATTRIBUTES, BACKGROUNDS, COLOURS, NUMBERS, PLACES, SHAPES, SIZES, VALUES, Scene

KIND_WIDTH = 32  # identifies the attribute; the rest of the vector is its value
UNSAID, NOTHING = "unsaid", "nothing"  # the sentence leaves it open; there is no sentence
OPTIONS = {attribute: (*VALUES[attribute], UNSAID, NOTHING) for attribute in ATTRIBUTES}
AT = [i % len(ATTRIBUTES) for i in range(TOKENS)]  # the attribute of every token


def labels(scene: Scene) -> list[int]:
    """The index of each attribute's value among its options."""
    values = {attribute: getattr(scene, attribute) or UNSAID for attribute in ATTRIBUTES}
    if values["place"] == "centre":
        values["place"] = UNSAID  # the default
    return [OPTIONS[attribute].index(values[attribute]) for attribute in ATTRIBUTES]


def no_labels() -> list[int]:
    return [OPTIONS[attribute].index(NOTHING) for attribute in ATTRIBUTES]


def tables() -> list[torch.Tensor]:
    """For each attribute the vectors of its options: as many 1 as −1, so mean 0 and deviation 1 like a layer norm's."""
    rng = torch.Generator().manual_seed(96)

    def vector(width: int) -> torch.Tensor:
        return torch.where(torch.randperm(width, generator=rng) < width // 2, 1.0, -1.0)

    names = dict.fromkeys((*COLOURS, *SHAPES, *BACKGROUNDS, *SIZES, *PLACES, *NUMBERS, UNSAID, NOTHING))
    value = {name: vector(WIDTH - KIND_WIDTH) for name in names}
    kind = [vector(KIND_WIDTH) for _ in ATTRIBUTES]
    return [
        torch.stack([torch.cat([kind[place], value[option]]) for option in OPTIONS[attribute]])
        for place, attribute in enumerate(ATTRIBUTES)
    ]


def codes(chosen: torch.Tensor, vectors: list[torch.Tensor]) -> torch.Tensor:
    """The text encoder's target for these labels (batch × attributes): batch × tokens × width."""
    each = torch.stack([vectors[place][chosen[:, place]] for place in range(len(ATTRIBUTES))], 1)
    return each[:, AT]
