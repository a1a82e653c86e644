"""The control worker: the sweep and the expansion of batches."""

from common.sentences import Sentences

sentence = Sentences(__file__)
