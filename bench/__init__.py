"""The benches, in the order in which docs/performance.md shows them: one module of this folder each."""

BENCHES = (
    "farm_vs_bare",
    "scaling",
    "claim",
    "submit",
    "million",
    "dataset",
    "fairness",
    "fanout",
    "dashboards",
    "screens",
    "queue",
    "encode",
    "coldstart",
    "invariance",
)
