"""The domain: what a farm stores and decides. The only place that changes state."""

from common.sentences import Sentences

sentence = Sentences(__file__)
