"""The models and LoRAs to draw with, and the manifest of an imported model. Pure values."""

from common.sentences import Sentences

sentence = Sentences(__file__)
