"""The local farm: Postgres, Valkey and S3 from wheels, the API and the workers, under one supervisor."""

from common.sentences import Sentences

sentence = Sentences(__file__)
