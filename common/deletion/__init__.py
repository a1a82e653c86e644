"""Deletion: by id or by retention, of rows and of bytes."""

from common.sentences import Sentences

sentence = Sentences(__file__)
