"""The admin dashboard."""

from common.sentences import Sentences

sentence = Sentences(__file__)
