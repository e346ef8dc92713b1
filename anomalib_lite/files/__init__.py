"""How anything gets onto the disk and back: atomically, as model files, as checkpoints."""
