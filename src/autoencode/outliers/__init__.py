"""Find images unlike those a model was trained on, with a stated false positive rate, and review them."""
