"""Models in memory: what a pipeline is, the families, and the stub that renders without a GPU."""

from common.sentences import Sentences

sentence = Sentences(__file__)
