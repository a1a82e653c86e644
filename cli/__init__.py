"""The command line `huafang`: an HTTP client of the farm, and the starter of its processes."""

from common.sentences import Sentences

sentence = Sentences(__file__)
