"""Pictures. Every function that plots returns a matplotlib Figure; nothing shows or keeps global state."""
