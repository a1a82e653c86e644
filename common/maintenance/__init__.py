"""What keeps a farm in order: rows that nothing needs any more, and objects and rows that must be the same."""

from common.sentences import Sentences

sentence = Sentences(__file__)
