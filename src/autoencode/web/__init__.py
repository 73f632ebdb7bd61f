"""The local page: it presents what the other packages return, and computes nothing itself."""
