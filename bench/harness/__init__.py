"""What the benches share: measurement, a farm to measure, load, reports."""
