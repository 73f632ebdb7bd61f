"""Images that look alike: an index of vectors, the stores that can hold it, and search."""
