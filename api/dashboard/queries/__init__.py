"""What the screens read and the API does not, one module a noun: codes and numbers, no words. Changes nothing.

Each is bounded by an index, a counter or a window, however many jobs and images there are. What the API reads already
is not here: jobs (`api.queries.jobs`, `common.queue.search`), batches (`api.queries.batches`), datasets
(`api.queries.datasets`), and what waits and runs (`common.queue.stats`).
"""
