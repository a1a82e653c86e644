"""Models on disk and which of them are resident: import, hub, store, verification."""

from common.sentences import Sentences

sentence = Sentences(__file__)
