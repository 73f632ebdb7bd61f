"""Images on disk -> pixels -> packs -> batches. Nothing that decodes or packs imports torch."""
