"""Estimates: when what waits, or would be submitted, will have ended, by what the farm did lately."""

from common.sentences import Sentences

sentence = Sentences(__file__)
