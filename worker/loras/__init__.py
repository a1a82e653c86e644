"""LoRAs: their files read and checked, each weight matched with a layer of the model, and added to what it computes."""

from common.sentences import Sentences

sentence = Sentences(__file__)
