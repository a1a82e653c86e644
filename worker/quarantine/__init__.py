"""Whether the host of this worker is at fault, and what follows. Knows no microbatch."""

from common.sentences import Sentences

sentence = Sentences(__file__)
