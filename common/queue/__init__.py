"""Jobs and images: every change of their state, how a worker claims them, and how they are found and counted."""

from common.sentences import Sentences

sentence = Sentences(__file__)
