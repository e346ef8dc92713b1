"""Visual anomaly detection from good images only."""
