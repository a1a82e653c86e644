"""What runs in a Celery worker: rendering on a device, and the control work beside it."""

from common.sentences import Sentences

sentence = Sentences(__file__)
