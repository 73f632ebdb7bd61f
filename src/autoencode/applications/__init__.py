"""What a trained model is good for: each module takes a model and images and returns a result."""
