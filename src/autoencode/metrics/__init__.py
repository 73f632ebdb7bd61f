"""What a model is worth, in numbers: pure functions of tensors and arrays."""
