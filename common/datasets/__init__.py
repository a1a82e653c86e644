"""Datasets: their life, and where each file of an export lies."""

from common.sentences import Sentences

sentence = Sentences(__file__)
