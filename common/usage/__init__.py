"""What tenants took: a ledger that settling writes, and its sums by day."""
