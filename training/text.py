"""Stage 2: trains the text encoder to give the code of the scene that a sentence describes, whatever its wording.

Needs no images: the UNet is trained on the same codes. A middle layer also learns which attribute each character
belongs to; without that it takes long to learn that two colours in a sentence have two roles.
"""

import random
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from training import codes, networks, noise
from training.captions import around, describe, expand, read_tags, tagged_caption
from training.grammar import RULES
from training.loop import Losses
from training.tokens import numbered, tokenizer
from training.world import ATTRIBUTES, COLOURS, NATURAL, NUMBERS, SHAPES, Scene, draw_scene

BATCH = 64
TAG_COUNT = 12
TAGGED_LAYER = 2
Sample = tuple[str, list[int]]


class TextEncoder:
    name = "text"
    rate = 1e-3

    def __init__(self, steps: int) -> None:
        torch.manual_seed(2)
        self.steps = steps
        self.reader = tokenizer()
        self.networks = nn.ModuleDict(
            {"encoder": networks.text_encoder(len(self.reader)), "tags": nn.Linear(networks.WIDTH, TAG_COUNT)}
        )
        self._vectors = codes.tables()

    def losses(self, step: int) -> Losses:
        rng = random.Random(f"text {step}")
        batch = [sample(rng) for _ in range(BATCH)]
        texts, tags = zip(*(read_tags(text) for text, _ in batch), strict=True)
        read = self.reader(
            list(texts), padding="max_length", max_length=networks.TOKENS, truncation=True, return_offsets_mapping=True
        )
        wanted = torch.tensor([labels for _, labels in batch])
        output = self.networks["encoder"](torch.tensor(read["input_ids"]), output_hidden_states=True)
        encoded = output.last_hidden_state
        right = functional.mse_loss(encoded, codes.codes(wanted, self._vectors))
        entropy = torch.stack([self._entropy(encoded, wanted, place) for place in range(len(ATTRIBUTES))]).mean()
        roles = self.networks["tags"](output.hidden_states[TAGGED_LAYER])
        role = functional.cross_entropy(
            roles.flatten(0, 1), torch.tensor(_tags_of_tokens(read["offset_mapping"], tags)).flatten()
        )
        losses = {"entropy": entropy, "distance": right, "roles": role}
        return {"total": entropy + right + role, **{name: loss.detach() for name, loss in losses.items()}}

    def _entropy(self, encoded: torch.Tensor, wanted: torch.Tensor, place: int) -> torch.Tensor:
        likely = scores(encoded, self._vectors, place) / 4
        return functional.cross_entropy(likely.flatten(0, 1), wanted[:, place].repeat_interleave(likely.shape[1]))


def _tags_of_tokens(offsets: list[list[tuple[int, int]]], tags: tuple[list[int], ...]) -> list[list[int]]:
    """Special tokens and padding have no tag."""
    return [
        [one[start] if end > start else 0 for start, end in spans] for spans, one in zip(offsets, tags, strict=True)
    ]


def scores(encoded: torch.Tensor, vectors: list[torch.Tensor], place: int) -> torch.Tensor:
    """The similarity of each of an attribute's tokens to each of its options: batch × its tokens × options."""
    return encoded[:, place :: len(ATTRIBUTES)] @ vectors[place].T


@torch.no_grad()
def understood(texts: list[str], encoder: nn.Module, reader: object) -> list[dict[str, str]]:
    """The scene that the encoder reads from each text."""
    vectors, encoded = codes.tables(), encoder(torch.tensor(numbered(texts, reader))).last_hidden_state
    best = [scores(encoded, vectors, place).sum(1).argmax(1).tolist() for place in range(len(ATTRIBUTES))]
    return [
        {attribute: codes.OPTIONS[attribute][chosen] for attribute, chosen in zip(ATTRIBUTES, row, strict=True)}
        for row in zip(*best, strict=True)
    ]


def sample(rng: random.Random) -> Sample:
    """A sentence and its labels. Some sentences name few attributes or none, or only what is not there."""
    scene = draw_scene(rng)
    chance = rng.random()
    if chance < 0.03:
        return _nothing(rng)
    if chance < 0.05:
        return _colour_only(scene, rng)
    if chance < 0.115:
        return _unnamed_colour(rng)
    if chance < 0.125:
        return _unnamed_background(rng)
    if chance < 0.135:
        return _starless(rng)
    return tagged_caption(scene, rng), codes.labels(scene)


def _nothing(rng: random.Random) -> Sample:
    text = "" if rng.random() < 0.4 else noise.characters(rng.randint(1, 10), rng)
    return text, codes.no_labels()


def _colour_only(scene: Scene, rng: random.Random) -> Sample:
    scene = Scene("circle", scene.colour or "red")
    labels = codes.labels(scene)
    labels[ATTRIBUTES.index("shape")] = codes.no_labels()[ATTRIBUTES.index("shape")]
    return expand("colour", scene, rng), labels


def _unnamed_colour(rng: random.Random) -> Sample:
    """不是红色的圆: the circle has the first of its natural colours that is not excluded."""
    shape = rng.choice(SHAPES[:-1])
    excluded = NATURAL[shape][0] if rng.random() < 0.5 else rng.choice(COLOURS)
    colour = next(colour for colour in (*NATURAL[shape], "red", "blue") if colour != excluded)
    number = rng.choice(NUMBERS) if rng.random() < 0.15 else None
    said = Scene(shape, excluded, number=number)  # as if it were its colour
    text = around(describe(said, rng, RULES, "unnamed"), rng)
    return text, codes.labels(replace(said, colour=colour))


def _unnamed_background(rng: random.Random) -> Sample:
    """红圆，不要白色背景: the background is blue, or yellow behind what is blue."""
    scene = Scene(rng.choice(SHAPES[:-1]), rng.choice([colour for colour in COLOURS if colour != "white"]))
    text = around(describe(scene, rng, RULES, "not-white"), rng)
    return text, codes.labels(replace(scene, background="yellow" if scene.colour == "blue" else "blue"))


def _starless(rng: random.Random) -> Sample:
    """没有星星的夜空: black, since every drawn night has stars."""
    scene = Scene("moon" if rng.random() < 0.4 else None, None, "night")
    text = around(describe(scene, rng, RULES, "starless-moon" if scene.shape else "starless"), rng)
    return text, codes.labels(replace(scene, background="black"))
