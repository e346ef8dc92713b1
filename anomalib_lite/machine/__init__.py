"""What this machine can compute with, and what it has used."""
