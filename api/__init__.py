"""The HTTP API and the dashboard."""

from common.sentences import Sentences

sentence = Sentences(__file__)
