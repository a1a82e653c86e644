"""The export of datasets: shards, formats, card."""

from common.sentences import Sentences

sentence = Sentences(__file__)
