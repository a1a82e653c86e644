"""The servers of a local farm: Postgres, Valkey and an S3 store from wheels, under a supervisor."""
