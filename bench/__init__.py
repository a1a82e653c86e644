"""The benches, in the order of docs/10-performance.md: each is a module of `bench.cases`."""

BENCHES = (
    "farm_vs_bare",
    "scaling",
    "claim",
    "submit",
    "reuse",
    "million",
    "footprint",
    "plans",
    "dataset",
    "deletion",
    "fairness",
    "neighbours",
    "fanout",
    "dashboards",
    "screens",
    "hostile",
    "encode",
    "coldstart",
    "invariance",
)
